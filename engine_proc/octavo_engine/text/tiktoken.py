"""Vocabularies in tiktoken's form, lines of base64 and rank, as Qwen's first generation publishes them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo_engine.text.errors import TextError
from octavo_engine.text.pieces import BYTE_CHARS
from octavo_engine.text.pretokenizers import PRE_TOKENIZERS

__all__ = ["QWEN_SPECIALS", "load_tiktoken", "merges_of_ranks"]

QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
"""In the order of their ids, which follow the ranks."""


def load_tiktoken(path: Path, specials: tuple[str, ...], pre: str) -> Any:
    """A `tokenizers.Tokenizer` that gives tiktoken's ids. pre: a name of PRE_TOKENIZERS. Raises TextError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    ranks = _read(path)
    merges = merges_of_ranks(ranks)
    rules = PRE_TOKENIZERS[pre]
    # A word that is a token stays whole: tiktoken looks it up before it merges.
    tokenizer = Tokenizer(models.BPE(vocab=ranks, merges=merges, ignore_merges=True))
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rules.build()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def merges_of_ranks(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """A pair's rank is its whole's. A whole that can be cut in several ways is joined from any of them."""
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += sorted(cuts, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _read(path: Path) -> dict[str, int]:
    """Each token's bytes as the characters that stand for them, with its rank, which is its id."""
    ranks = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks["".join(BYTE_CHARS[byte] for byte in base64.b64decode(token, validate=True))] = int(rank)
    except ValueError as error:
        raise TextError(f"{path} is not a tiktoken vocabulary: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise TextError(f"{path} is not a tiktoken vocabulary: its {len(ranks)} ranks are not 0, 1, 2, ...")
    return ranks
