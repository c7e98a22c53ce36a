"""What tokenizer_config.json and special_tokens_map.json say of a tokenizer, each key of the type that it must have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from octavo_engine.text.errors import TextError

__all__ = ["ConfiguredToken", "TokenizerConfig", "read_json", "read_tokenizer_config"]


class ConfiguredToken(msgspec.Struct):
    """An AddedToken of transformers; None where the file leaves a flag to the library."""

    content: str
    single_word: bool | None = None
    lstrip: bool | None = None
    rstrip: bool | None = None
    normalized: bool | None = None
    special: bool | None = None

    def flags(self) -> dict[str, bool]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if isinstance(value, bool)}


_Token = str | ConfiguredToken


class TokenizerConfig(msgspec.Struct):
    """The keys that are read. Others are whatever they like."""

    bos_token: _Token | None = None
    eos_token: _Token | None = None
    unk_token: _Token | None = None
    pad_token: _Token | None = None
    sep_token: _Token | None = None
    cls_token: _Token | None = None
    mask_token: _Token | None = None
    additional_special_tokens: list[_Token] | None = None
    extra_special_tokens: list[_Token] | dict[str, Any] | None = None
    added_tokens_decoder: dict[Annotated[int, msgspec.Meta(ge=0)], ConfiguredToken] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool | None = None
    tokenizer_class: str | None = None
    auto_map: dict[str, Any] | None = None
    chat_template: Any = None

    def named(self) -> dict[str, str]:
        """Special tokens by the names that templates know them by."""
        given = {name: getattr(self, name) for name in self.__struct_fields__[:7]}
        return {name: _content(token) for name, token in given.items() if token and _content(token)}

    def special_tokens(self) -> list[str]:
        """All that are special by their place in the file."""
        extra = self.additional_special_tokens or self.extra_special_tokens or ()
        return [*self.named().values(), *(_content(token) for token in extra if not isinstance(extra, dict))]


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Of a folder that may have neither file. Raises TextError, which names file and key."""
    given: dict[str, Any] = {}
    config = TokenizerConfig()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        given |= read_json(folder / name)
        try:
            config = msgspec.convert(given, TokenizerConfig, str_keys=True)
        except (msgspec.ValidationError, UnicodeError) as error:
            raise TextError(f"{folder / name}: {error}") from error
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file. Raises TextError."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TextError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise TextError(f"{path} holds a {type(found).__name__}, and a JSON object belongs there")
    return found


def _content(token: _Token) -> str:
    return token if isinstance(token, str) else token.content
