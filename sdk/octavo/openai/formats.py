"""What an answer must be: OpenAI's response_format, and the guided_ fields and structured_outputs that vLLM has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.errors import InvalidGrammar, InvalidOption
from octavo.options import Choice, Grammar, JsonObject, JsonSchema, Regex, Structured

__all__ = ["Asked", "Formats", "ResponseFormat", "of_format"]


class NamedSchema(msgspec.Struct):
    """strict: refuse a schema with keywords that can't be enforced; else those are left out, as OpenAI's default is."""

    name: str
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: NamedSchema | None = None


class Outputs(msgspec.Struct):
    """vLLM's structured_outputs: one of them. What else it may hold tunes libraries that are not used here."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


_KINDS: dict[str, Callable[[Any], Structured]] = {
    "json": JsonSchema,
    "regex": Regex,
    "choice": Choice,
    "grammar": Grammar,
    "json_object": lambda _: JsonObject(),
}


Asked = list[tuple[str, Callable[[Any], Structured], Any]]
"""Field, what makes the option of it, and its value."""


class Formats(msgspec.Struct, kw_only=True):
    """The fields of a request."""

    response_format: ResponseFormat | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None  # here there is one
    structured_outputs: Outputs | None = None

    def structured(self) -> Structured | None:
        """Raises InvalidOption, whose `field` is the field of the request."""
        asked = self.asked()
        if len(asked) > 1:
            raise InvalidOption(asked[1][0], "given", f"not beside {asked[0][0]}: one of them says what the answer is")
        if not asked:
            return None
        field, make, value = asked[0]
        try:
            return make(value)
        except InvalidOption as error:
            raise InvalidOption(field, error.value, error.allowed) from None

    def named(self, error: Exception) -> Exception:
        """The error with the request's field, where it is about what the answer must be."""
        if isinstance(error, InvalidGrammar):
            asked, words = self.asked(), str(error).removeprefix("structured: ")
            return InvalidOption(asked[0][0] if asked else "tools", "...", words)
        return error

    def asked(self) -> Asked:
        """The fields that say what the answer is."""
        asked: Asked = []
        if self.response_format is not None and self.response_format.type != "text":
            asked.append(("response_format", of_format, self.response_format))
        for name in ("json", "regex", "choice", "grammar"):
            if (value := getattr(self, f"guided_{name}")) is not None:
                asked.append((f"guided_{name}", _KINDS[name], value))
        if self.structured_outputs is not None:
            outputs = self.structured_outputs
            if outputs.structural_tag is not None:
                raise InvalidOption("structured_outputs.structural_tag", "...", "not served; write it as a grammar")
            for name, make in _KINDS.items():
                if (value := getattr(outputs, name)) not in (None, False):
                    asked.append((f"structured_outputs.{name}", make, value))
        return asked


def of_format(wanted: ResponseFormat) -> Structured:
    match wanted:
        case ResponseFormat("json_object"):
            return JsonObject()
        case ResponseFormat("json_schema", NamedSchema(schema=schema, strict=strict)):
            return JsonObject() if schema is None else JsonSchema(schema, strict=bool(strict))
        case ResponseFormat("json_schema"):
            raise InvalidOption("response_format", "json_schema", "needs json_schema: {name, schema} beside its type")
    raise InvalidOption("response_format", wanted.type, "a type of 'text', 'json_object' or 'json_schema'")
