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
WHOLE = "{% for m in messages %}{{ m | tojson(separators=(',', ':')) }}{% endfor %}"
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


GLM = (
    "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>{{ item['tools'] }}{% endif %}"
    "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM_0414 = (
    "[gMASK]<sop>{% for m in messages %}{% set meta = m.get('metadata', '') %}{% if m.role == 'assistant' and meta %}"
    "<|assistant|>{{ meta }} \n{{ m.content }}{% elif m.role in ['user', 'assistant', 'observation'] %}"
    "<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("arguments", [{"a": "é"}, '{"a": "é"}'])
@pytest.mark.parametrize(("source", "gap"), [(GLM, "\n"), (GLM_0414, " \n")], ids=["glm-4", "glm-4-0414"])
def test_glm_s_calls_are_turns_and_results_observations(source: str, gap: str, arguments: Any) -> None:
    template = ChatTemplate(source, {})
    result = {"role": "tool", "tool_call_id": "a", "name": "f", "content": "22"}
    told = f'<|assistant|>f{gap}{{"a": "é"}}'
    assert template.render([ASKED, call(arguments), result]) == (
        f"[gMASK]<sop><|user|>\nx{told}<|observation|>\n22<|assistant|>"
    )
    with_words = {**call(arguments), "content": "I look"}
    with_words["tool_calls"] = [*with_words["tool_calls"], {"function": {"name": "g"}}]
    assert template.render([ASKED, with_words]) == (
        f"[gMASK]<sop><|user|>\nx<|assistant|>\nI look{told}<|assistant|>g{gap}{{}}<|assistant|>"
    )
    # a result whose call was left out of the history
    assert template.render([ASKED, result]) == "[gMASK]<sop><|user|>\nx<|observation|>\n22<|assistant|>"
    assert result["role"] == "tool"


def test_a_template_that_writes_messages_as_they_are_gets_them_so() -> None:
    rendered = ChatTemplate(WHOLE, {}).render([call({"a": 1}), {"role": "tool", "content": "22"}])
    assert rendered.count('"arguments":{"a":1}') == rendered.count('"role":"tool"') == 1
    assert "observation" not in rendered


def test_results_stay_the_tool_s_where_a_template_shows_no_calls() -> None:
    result = {"role": "tool", "tool_call_id": "a", "content": "22"}
    assert ChatTemplate(NEITHER, {}).render([ASKED, result]) == "user tool "


def test_variables_and_the_template_for_tools() -> None:
    template = ChatTemplate("plain {{ thinking }}", {}, tool_use="with {{ tools[0].function.name }}")
    assert template.render([ASKED], {"thinking": False}) == "plain False"
    assert template.render([ASKED], {"tools": TOOLS}) == "with f"
    assert template.render([ASKED], {"tools": []}) == "plain "
