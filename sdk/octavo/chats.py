"""Chat messages and template variables as they cross the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo import wire
from octavo.errors import InvalidRequest

__all__ = ["template_variables", "turn"]

_encode = msgspec.json.Encoder(enc_hook=wire.plain).encode


def turn(item: Any) -> wire.Message:
    """A message from {"role", "content", and what else the template reads}. Raises InvalidRequest.

    content may be None only where there is something else.
    """
    if isinstance(item, Mapping):
        more = {name: value for name, value in item.items() if name not in ("role", "content")}
        encoded = _object("messages", more) if more else None
        item = wire.Message(item.get("role"), item.get("content"), encoded)  # type: ignore[arg-type]
    if not isinstance(item, wire.Message) or not isinstance(item.role, str):
        raise InvalidRequest('messages: each needs a "role", a string')
    if not isinstance(item.content, str) and not (item.content is None and item.more):
        raise InvalidRequest('messages: each needs a "role" and a "content", both strings')
    return item


def template_variables(template: Mapping[str, Any] | None, **more: Any) -> str | None:
    """Raises InvalidRequest for what JSON can't hold."""
    if template is None and not more:
        return None
    if template is not None and not isinstance(template, Mapping):
        raise InvalidRequest(f"template: a mapping of names to values is needed, not {type(template).__name__}")
    return _object("template", {**(template or {}), **more})


def _object(name: str, value: dict[Any, Any]) -> str:
    try:
        return _encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}: JSON values are needed: {error}") from None
