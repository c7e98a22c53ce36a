"""Tokenizers that only transformers can build or run. Importing it costs a second, so it is imported here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo_engine.text.errors import TextError
from octavo_engine.text.fast import FastBackend
from octavo_engine.text.pieces import StreamFactory, window_factory
from octavo_engine.text.tokenizer_config import TokenizerConfig

__all__ = ["SlowBackend", "load_slow"]


class SlowBackend:
    """tokenizer: a transformers tokenizer in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def stream_factory(self, skip_special_tokens: bool) -> StreamFactory:
        size = self.vocab_size

        def decode(ids: list[int]) -> str:
            known = [token for token in ids if 0 <= token < size]
            text: str = self.tokenizer.decode(
                known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
            return text

        return window_factory(decode)

    def token_bytes(self) -> tuple[list[bytes] | None, frozenset[int]]:
        return None, self._special

    def longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=0)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def token_of(self, token_id: int | None) -> str | None:
        if token_id is None or not 0 <= token_id < self.vocab_size:
            return None
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def match_whole(self, tokens: list[str]) -> None:
        """These tokens of the vocabulary are found in a text as they are, and hidden from an answer's."""
        self.tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        self._special = frozenset(self.tokenizer.all_special_ids)


def load_slow(
    folder: Path, config: TokenizerConfig, trust_remote_code: bool
) -> tuple[FastBackend | SlowBackend, dict[str, str]]:
    """The folder's tokenizer as transformers makes it, and its named special tokens. Raises TextError, also where only
    code of the checkpoint's own could make it and that is not trusted."""
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    code, kind = (config.auto_map or {}).get("AutoTokenizer"), config.tokenizer_class
    if code and not trust_remote_code and (kind is None or tokenizer_class_from_name(kind) is None):
        raise TextError(
            f"the tokenizer in {folder} ({kind or code}) is code of the checkpoint's own, which "
            "EngineOptions(trust_remote_code=True) would run; or name a folder with a tokenizer.json for this model in "
            "EngineOptions.tokenizer"
        )

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # a checkpoint's own code may raise anything
        raise TextError(
            f"transformers can't load the tokenizer in {folder}: {error}; or name a folder with a tokenizer.json for "
            "this model in EngineOptions.tokenizer"
        ) from error
    named = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    if tokenizer.is_fast:
        return FastBackend(tokenizer.backend_tokenizer), named
    return SlowBackend(tokenizer), named
