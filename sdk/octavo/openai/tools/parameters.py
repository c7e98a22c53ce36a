"""Calls whose parameters are marked one by one: <function=f><parameter=a>...</parameter></function> (Qwen3-Coder)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.openai.tools.reader import END, Mismatch, Reader, Reading

__all__ = ["MarkedParameters"]

_PARAMETER, _PARAMETER_END, _END = "<parameter=", "</parameter>", "</function>"
_WORDS = {"True": "true", "False": "false", "None": "null"}


class MarkedParameters(Reader):
    """schemas: tool -> its parameters' JSON schema, which tells what is text and what is not.

    A call has begun with its name; each parameter is said as a whole.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(("<function=",), (_END, "</tool_call>"), ("<tool_call>",))
        self._schemas = schemas

    def section(self, opener: str) -> Reading[None]:
        name = yield from self._to(">")
        if not name or any(character.isspace() or character in "<>{}" for character in name):
            raise Mismatch
        properties = self._schemas.get(name, {}).get("properties")

        def parameter(count: int) -> Reading[tuple[str, bool]]:
            if (yield from self.one_of((_PARAMETER, _END))) == _END:
                return "", True
            return (yield from self._parameter(properties)), False

        yield from self.members(name, parameter)

    def _parameter(self, properties: Any) -> Reading[str]:
        key = yield from self._to(">")
        text = yield from self._to(_PARAMETER_END)
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        return f"{json.dumps(key, ensure_ascii=False)}: {_value(text, schema)}"

    def _to(self, stop: str) -> Reading[str]:
        said: list[str] = []
        if (yield from self.until((stop,), said.append)) == END:
            raise Mismatch
        return "".join(said)


def _value(text: str, schema: Any) -> str:
    """As JSON: a string where the schema says so or where it is nothing else."""
    text = text.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind != "string" and not (isinstance(kind, list) and "string" in kind):
        if text.strip() in _WORDS:
            return _WORDS[text.strip()]
        try:
            json.loads(text, parse_constant=_refuse)
            return text.strip()
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
