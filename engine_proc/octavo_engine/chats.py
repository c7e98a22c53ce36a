"""The chats of Generate and Tokenize: wire messages to what a template reads."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo import wire
from octavo_engine.text import Text, TextError

__all__ = ["chat_length", "render_chat"]

_decoder = msgspec.json.Decoder(dict[str, Any])


def chat_length(message: wire.Generate | wire.Tokenize) -> int:
    """Characters of the chat that the message holds, of its tools and other variables too; 0 without one."""
    turns = sum(len(m.content or "") + len(m.more or "") for m in message.messages or ())
    return turns + len(message.template or "")


def render_chat(text: Text, message: wire.Generate | wire.Tokenize) -> str:
    """What the template makes of the message's chat. Raises TextError."""
    return text.render_chat(_turns(message), _object(message.template))


def _turns(message: wire.Generate | wire.Tokenize) -> list[dict[str, Any]]:
    return [_turn(turn) for turn in message.messages or ()]


def _turn(turn: wire.Message) -> dict[str, Any]:
    """Role and content first, as a template that prints a message whole would show them."""
    own = {"role": turn.role, "content": turn.content}
    return {**own, **_object(turn.more), **own}


def _object(encoded: str | None) -> dict[str, Any]:
    try:
        return _decoder.decode(encoded) if encoded is not None else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise TextError(f"what the chat template reads is no JSON object: {error}") from error
