"""Tool calls in a chat's history: their arguments as the template wants them.

OpenAI's messages hold arguments as JSON text, transformers' templates mostly take an object; some (DeepSeek's) glue
the text in. Which kind a template is shows when it renders a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo_engine.text.errors import TextError

__all__ = ["has_calls", "wants_text", "with_arguments"]

_PROBE: list[Mapping[str, Any]] = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": {"probed": True}}}
        ],
    },
    {"role": "tool", "content": "b", "name": "probe", "tool_call_id": "abcdefghi"},
]


def has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(message.get("tool_calls"), list) for message in messages)


def wants_text(render: Callable[[Sequence[Mapping[str, Any]]], str]) -> bool:
    """Whether a template shows a call's arguments as JSON only where they are given as JSON text."""

    def shows(as_text: bool) -> bool:
        try:
            return '"probed": true' in render(with_arguments(_PROBE, as_text=as_text))
        except TextError:
            return False

    return not shows(as_text=False) and shows(as_text=True)


def with_arguments(messages: Sequence[Mapping[str, Any]], *, as_text: bool) -> list[Mapping[str, Any]]:
    """The messages with all calls' arguments of one kind. Text that is no JSON stays text."""
    return [
        {**message, "tool_calls": [_call(call, as_text) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _call(call: Any, as_text: bool) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if as_text and not isinstance(arguments, str):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not as_text and isinstance(arguments, str):
        try:
            return {**call, "arguments": json.loads(arguments or "{}")}
        except (ValueError, RecursionError):
            return call
    return call
