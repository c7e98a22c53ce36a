"""Tools for a model whose chat template has no word of them: told in a system message, in Hermes' format.

Its calls in the history become text, the tools' answers the user's words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.openai.tool_fields import Toolbox

__all__ = ["told_in_text"]

_INTRODUCTION = """You can call functions. Their signatures are within <tools></tools> tags:
<tools>
{}
</tools>
To call a function, answer with a JSON object that holds its name and its arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": <function name>, "arguments": <arguments as an object>}}
</tool_call>"""


def told_in_text(messages: Sequence[dict[str, Any]], tools: Toolbox) -> list[dict[str, Any]]:
    """The messages with roles, texts and nothing else."""
    told: list[dict[str, Any]] = []
    for message in messages:
        role, text = message["role"], message.get("content") or ""
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
            if told and told[-1]["role"] == "user" and told[-1]["content"].endswith("</tool_response>"):
                told[-1]["content"] += "\n" + text
                continue
        calls = message.get("tool_calls") or ()
        told.append({"role": role, "content": "\n".join(filter(None, [text, *map(_call, calls)]))})
    if tools.functions:
        signatures = "\n".join(msgspec.json.encode(tool).decode() for tool in tools.told())
        introduction = _INTRODUCTION.format(signatures)
        if told and told[0]["role"] == "system":
            told[0]["content"] += "\n\n" + introduction
        else:
            told.insert(0, {"role": "system", "content": introduction})
    return told


def _call(call: dict[str, Any]) -> str:
    function = call["function"]
    return (
        f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}\n</tool_call>'
    )
