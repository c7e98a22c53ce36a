"""Tool calls in a chat's history, in the way that the template reads them.

OpenAI's messages hold a call's arguments as JSON text, transformers' templates mostly take an object; some, DeepSeek's,
glue the text in. GLM-4's know no calls: there a call is a turn whose `metadata` is the function's name and whose
content are its arguments, and what the function gave has the role "observation" (THUDM/GLM-4, openai_api_server.py).
Which way a template's is shows when it renders a call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from octavo_engine.text.errors import TextError

__all__ = ["Spelling", "has_calls", "spelling"]

Messages = Sequence[Mapping[str, Any]]
Spelling = Callable[[Messages], Messages]

_NAME, _ARGUMENTS = "finder", '"probed": true'
_PROBE: Messages = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": _NAME, "arguments": {"probed": True}}}
        ],
    },
    {"role": "tool", "content": "b", "name": _NAME, "tool_call_id": "abcdefghi"},
]


def has_calls(messages: Messages) -> bool:
    return any(_calls(message) is not None or message.get("role") == "tool" for message in messages)


def spelling(render: Callable[[Messages], str]) -> Spelling:
    """The first way in which a template shows the arguments of a call; the usual one where it shows no calls."""

    def shown(spell: Spelling) -> str:
        try:
            return render(spell(_PROBE))
        except TextError:
            return ""

    objects, texts = shown(_with_objects), shown(_with_texts)
    if _ARGUMENTS not in objects and _ARGUMENTS in texts:
        return _with_texts
    if _NAME not in objects + texts and _NAME in shown(_as_turns):
        return _as_turns
    return _with_objects


def _calls(message: Mapping[str, Any]) -> list[Any] | None:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else None


def _with_objects(messages: Messages) -> Messages:
    """Text that is no JSON stays text."""
    return _with_arguments(messages, lambda arguments: _parsed(arguments) if isinstance(arguments, str) else arguments)


def _with_texts(messages: Messages) -> Messages:
    return _with_arguments(messages, _text)


def _as_turns(messages: Messages) -> Messages:
    return [turn for message in messages for turn in _turns(message)]


def _turns(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if message.get("role") == "tool":
        yield {**message, "role": "observation"}
        return
    calls = _calls(message)
    if calls is None or message.get("content"):
        yield message
    for call in calls or ():
        called = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(called, Mapping):
            content = _text(called.get("arguments") or {})
            yield {"role": message["role"], "metadata": called.get("name"), "content": content}


def _with_arguments(messages: Messages, change: Callable[[Any], Any]) -> Messages:
    def changed(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": changed(call["function"])}
        return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call

    return [
        {**message, "tool_calls": [changed(call) for call in calls]}
        if (calls := _calls(message)) is not None
        else message
        for message in messages
    ]


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
