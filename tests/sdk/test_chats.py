"""What the client sends of a chat beside roles and texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo import InvalidRequest
from octavo.testing import ScriptedEngine

pytestmark = pytest.mark.anyio

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]},
]


async def test_tools_and_calls_cross_the_wire() -> None:
    engine = ScriptedEngine(default="yes")
    async with engine.client() as client:
        await client.generate(CHAT, template={"tools": [{"name": "f"}], "enable_thinking": False})
        async for _ in client.stream(CHAT[:1], template={}):
            pass
        await client.chat(CHAT)
        assert await client.tokenize(CHAT, template={"tools": []}) == [0]
    first, second, third = engine.requests
    assert json.loads(first.template or "") == {"tools": [{"name": "f"}], "enable_thinking": False}
    assert first.messages is not None
    assert first.messages[0].more is None
    assert json.loads(first.messages[1].more or "") == {"tool_calls": CHAT[1]["tool_calls"]}
    assert (second.template, third.template) == ("{}", None)


@pytest.mark.parametrize(
    ("chat", "template", "words"),
    [
        ([{"role": "user", "content": None}], None, '"content"'),
        ([{"role": None, "content": "x"}], None, '"role"'),
        ([{"role": "user", "content": "x", "more": object()}], None, r"messages\[0\]: JSON"),
        ([{"role": "user", "content": "x", "more": {1j: 1}}], None, r"messages\[0\]: JSON"),
        (CHAT, {"tools": [object()]}, "template: JSON"),
        (CHAT, {"tools": "\ud800"}, "template: JSON"),
        (CHAT, [1], "a mapping"),
    ],
)
async def test_what_does_not_cross(chat: Any, template: Any, words: str) -> None:
    async with ScriptedEngine(default="yes").client() as client:
        with pytest.raises(InvalidRequest, match=words):
            await client.generate(chat, template=template)
