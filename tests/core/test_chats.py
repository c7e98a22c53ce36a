"""Chats from the wire to the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from octavo import wire
from octavo.options import SamplingParams
from octavo_engine.chats import chat_length, render_chat
from octavo_engine.text import Text, TextError


class Recorder(Text):
    """Keeps what it is asked to render."""

    def render_chat(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        self.asked = (messages, variables)
        return "rendered"


def ask(*messages: wire.Message, template: str | None = None) -> wire.Generate:
    return wire.Generate(1, SamplingParams(), messages=list(messages), template=template)


def test_messages_and_variables_arrive_whole() -> None:
    text = Recorder()
    said = wire.Message("assistant", None, '{"tool_calls":[{"id":"a"}],"big":123456789012345678901234567890}')
    message = ask(wire.Message("user", "hé"), said, template='{"tools":[1]}')
    assert render_chat(text, message) == "rendered"
    calls = {"tool_calls": [{"id": "a"}], "big": 123456789012345678901234567890}
    assert text.asked == (
        [{"role": "user", "content": "hé"}, {"role": "assistant", "content": None, **calls}],
        {"tools": [1]},
    )
    assert chat_length(message) == 2 + len(said.more or "") + len('{"tools":[1]}')


def test_a_message_s_role_stays_its_own() -> None:
    text = Recorder()
    render_chat(text, ask(wire.Message("user", "x", '{"role":"system","content":"y"}')))
    assert text.asked[0] == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("broken", ["{", "[1]", "[" * 100_000, '"x"'])
def test_what_is_no_object_fails_its_request(broken: str) -> None:
    with pytest.raises(TextError, match="no JSON object"):
        render_chat(Recorder(), ask(wire.Message("user", "x"), template=broken))
    with pytest.raises(TextError, match="no JSON object"):
        render_chat(Recorder(), ask(wire.Message("user", "x", broken)))
