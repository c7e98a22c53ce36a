"""Chat messages and template variables as they cross the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from octavo import wire
from octavo.errors import InvalidRequest

__all__ = ["template_variables", "turns"]

_encode = msgspec.json.Encoder(enc_hook=wire.plain).encode


def turns(items: Iterable[Any]) -> list[wire.Message]:
    """Messages from {"role", "content", and what else the template reads}. Raises InvalidRequest.

    content may be None only where there is something else.
    """
    return [_turn(item, f"messages[{i}]") for i, item in enumerate(items)]


def _turn(item: Any, where: str) -> wire.Message:
    if isinstance(item, Mapping):
        more = {name: value for name, value in item.items() if name not in ("role", "content")}
        encoded = _object(where, more) if more else None
        item = wire.Message(item.get("role"), item.get("content"), encoded)  # type: ignore[arg-type]
    if not isinstance(item, wire.Message):
        raise InvalidRequest(f'{where}: a mapping with "role" and "content" is needed, not {type(item).__name__}')
    if not isinstance(item.role, str):
        raise InvalidRequest(f'{where}: "role" must be a string, not {type(item.role).__name__}')
    if not isinstance(item.content, str) and not (item.content is None and item.more):
        parts = "; join the text of its parts" if isinstance(item.content, list) else ""
        raise InvalidRequest(f'{where}: "content" must be a string, not {type(item.content).__name__}{parts}')
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
