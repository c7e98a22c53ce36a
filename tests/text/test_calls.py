"""Tool calls in a history: arguments reach a template as it wants them, however the caller wrote them."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_engine.text.chat import ChatTemplate

ASKED = {"role": "user", "content": "x"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALLS = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ X }}{% endfor %}{% endfor %}"
TO_JSON = CALLS.replace("X", "c.function.arguments | tojson")
GLUED = CALLS.replace("X", "'!' + c['function']['arguments']")
NEITHER = "{% for m in messages %}{{ m.role }} {% endfor %}"


def call(arguments: Any) -> dict[str, Any]:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


@pytest.mark.parametrize("arguments", [{"a": [1, "é"]}, '{"a": [1, "é"]}'])
@pytest.mark.parametrize(
    ("source", "rendered"),
    [(TO_JSON, '{"a": [1, "é"]}'), (GLUED, '!{"a": [1, "é"]}'), (NEITHER, "user assistant ")],
    ids=["tojson", "glued", "neither"],
)
def test_arguments(source: str, rendered: str, arguments: Any) -> None:
    messages = [ASKED, call(arguments)]
    assert ChatTemplate(source, {}).render(messages) == rendered
    assert messages[1] == call(arguments)


@pytest.mark.parametrize("calls", [5, "x", [5], [{}], [{"function": 3}], [{"function": {"arguments": "{no json"}}]])
def test_malformed_calls_are_the_template_s_business(calls: Any) -> None:
    messages = [ASKED, {"role": "assistant", "content": "y", "tool_calls": calls}]
    assert ChatTemplate(NEITHER, {}).render(messages) == "user assistant "


def test_variables_and_the_template_for_tools() -> None:
    template = ChatTemplate("plain {{ thinking }}", {}, tool_use="with {{ tools[0].function.name }}")
    assert template.render([ASKED], {"thinking": False}) == "plain False"
    assert template.render([ASKED], {"tools": TOOLS}) == "with f"
    assert template.render([ASKED], {"tools": []}) == "plain "
