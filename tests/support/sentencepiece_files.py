"""Writes tokenizer.model files: SentencePiece's ModelProto, the few fields that its readers need."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_sentencepiece"]


def write_sentencepiece(
    path: Path,
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    kind: int = 2,
    prefix: bool = True,
    squeeze: bool = False,
) -> Path:
    """kind: 1 unigram, 2 BPE. prefix: add_dummy_prefix. squeeze: remove_extra_whitespaces."""
    data = b""
    for token, score, type_ in zip(tokens, scores, types, strict=True):
        piece = _bytes(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _int(3, type_)
        data += _bytes(1, piece)
    trainer = _int(3, kind) + _int(4, len(tokens)) + _int(35, 1) + _int(40, 0) + _int(41, 1) + _int(42, 2)
    normalizer = _bytes(1, b"identity") + _int(3, prefix) + _int(4, squeeze) + _int(5, 1)
    path.write_bytes(data + _bytes(2, trainer) + _bytes(3, normalizer))
    return path


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
