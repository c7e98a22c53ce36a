"""Tokenizers of the `tokenizers` library."""

from __future__ import annotations

from typing import Any

from octavo_engine.text.pieces import StreamFactory, stream_factory, token_bytes

__all__ = ["FastBackend", "surround"]


class FastBackend:
    """tokenizer: a `tokenizers.Tokenizer`, owned from here on."""

    def __init__(self, tokenizer: Any) -> None:
        # A tokenizer.json may carry the padding and truncation of its training.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._special = frozenset(t for t, a in tokenizer.get_added_tokens_decoder().items() if a.special)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # The batch call releases the GIL, `encode` does not (0.23: 0.4 s of silence for 1.2 MB), and skips offsets.
        batch = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def stream_factory(self, skip_special_tokens: bool) -> StreamFactory:
        return stream_factory(self.tokenizer, skip_special_tokens)

    def token_bytes(self) -> tuple[list[bytes] | None, frozenset[int]]:
        return token_bytes(self.tokenizer), self._special

    def longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=0)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def token_of(self, token_id: int) -> str | None:
        found: str | None = self.tokenizer.id_to_token(token_id)
        return found

    def match_whole(self, tokens: list[str]) -> None:
        """These tokens of the vocabulary are found in a text as they are, and hidden from an answer's."""
        from tokenizers import AddedToken

        new = [token for token in tokens if self.tokenizer.token_to_id(token) not in self._special]
        self.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in new])
        self._special |= frozenset(self.tokenizer.token_to_id(token) for token in new)


def surround(tokenizer: Any, before: int | None, after: int | None) -> None:
    """Texts are encoded with these tokens around them, None for none, and with nothing else."""
    from tokenizers import processors

    tokens = [(str(token), token) for token in dict.fromkeys((before, after)) if token is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*([str(before)] if before is not None else []), "$A", *([str(after)] if after is not None else [])],
        pair=None,
        special_tokens=tokens,
    )
