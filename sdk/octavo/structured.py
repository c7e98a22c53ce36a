"""What an output must be: the values of SamplingParams.structured. Frozen and validated, as all options are.

The engine compiles them away from its step loop and lets the model draw only tokens that fit; when nothing more can
follow, the end-of-sequence token is all that is left. An output cut short (max_tokens, a stop string) is the
beginning of one that fits. What a grammar means is llguidance's: https://github.com/guidance-
ai/llguidance/tree/main/docs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.errors import InvalidOption

__all__ = ["Choice", "Grammar", "JsonObject", "JsonSchema", "Regex", "Structured"]


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema", omit_defaults=True):
    """A JSON value that this schema allows, object members in the schema's order.

    schema: as a dict, or as JSON text. strict: a schema with a keyword that can't be enforced is refused by its name;
    False leaves such keywords out. Between the parts of the value stands at most a space, or a newline and indentation.
    """

    schema: str | dict[str, Any]
    strict: bool = True

    def __post_init__(self) -> None:
        text: Any = self.schema
        allowed = "a JSON Schema: a dict, or the text of a JSON object"
        if isinstance(text, dict):
            try:
                text = msgspec.json.encode(text).decode()
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidOption("structured.schema", _brief(self.schema), f"{allowed} ({error})") from None
        elif not isinstance(text, str):
            raise InvalidOption("structured.schema", _brief(text), allowed)
        else:
            try:
                found = msgspec.json.decode(text)
            except (ValueError, RecursionError) as error:
                raise InvalidOption("structured.schema", _brief(text), f"{allowed} ({error})") from None
            if not isinstance(found, dict):
                raise InvalidOption("structured.schema", _brief(text), allowed)
        if not isinstance(self.strict, bool):
            raise InvalidOption("structured.strict", self.strict, "True or False")
        msgspec.structs.force_setattr(self, "schema", text)


class JsonObject(msgspec.Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """The whole output matches a regular expression, in the syntax of Rust's regex crate: no look-around, no references
    back. A \\d is 0 to 9."""

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise InvalidOption("structured.pattern", self.pattern, "a regular expression, as a non-empty string")


class Choice(msgspec.Struct, frozen=True, tag="choice"):
    """The output is one of these strings."""

    choices: Sequence[str]

    def __post_init__(self) -> None:
        value: Any = self.choices
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(s, str) and s for s in value):
            raise InvalidOption("structured.choices", _brief(value), "a list of at least one non-empty string")
        msgspec.structs.force_setattr(self, "choices", tuple(value))


class Grammar(msgspec.Struct, frozen=True, tag="grammar"):
    """The output is derived from a context-free grammar: in EBNF as llama.cpp writes it (GBNF, beginning with root), or
    in llguidance's Lark (beginning with start), where `%json {...}` stands for what a schema allows."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise InvalidOption("structured.text", self.text, "a grammar, as a non-empty string")


Structured = JsonSchema | JsonObject | Regex | Choice | Grammar


def _brief(value: object) -> object:
    """For an error's message; a schema may be long."""
    shown = repr(value)
    return value if len(shown) <= 80 else shown[:77] + "..."
