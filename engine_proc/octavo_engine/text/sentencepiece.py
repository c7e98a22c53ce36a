"""SentencePiece vocabularies (arXiv 1808.06226) of the BPE kind: the model file, and a `tokenizers` object of one.

The file is a protocol buffer (google/sentencepiece, src/sentencepiece_model.proto) of which six fields matter here, so
the 25 lines that read its wire format stand in for two libraries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo_engine.text.errors import TextError

__all__ = ["CONTROL", "NORMAL", "UNKNOWN", "USER_DEFINED", "Vocabulary", "add_pieces", "build_bpe", "read_model"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type; GGUF's token types too
_BPE = 2  # TrainerSpec.ModelType
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass
class Vocabulary:
    """tokens: by id. scores: of each; merges happen in falling order. types: of each.

    unknown: its id, None where the vocabulary has none. prefix: a space is put before a text. squeeze: runs of
    spaces count as one, and none at either end. charsmap: the compiled normalisation of the text, empty for none. once:
    the prefix stands only where a text begins, and begins without a space, not after special tokens too.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unknown: int | None = None
    prefix: bool = True
    squeeze: bool = False
    charsmap: bytes = b""
    once: bool = False
    ids: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {token: i for i, token in enumerate(self.tokens)}


def read_model(path: Path) -> Vocabulary:
    """A tokenizer.model file. Raises TextError where it is none, or of another kind than BPE."""
    pieces: list[tuple[str, float, int]] = []
    kind, unknown, prefix, squeeze, charsmap = 1, 0, True, True, b""
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                entry = dict(_fields(value))
                score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
                pieces.append((entry[1].decode(), score, entry.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
                kind, unknown = trainer.get(3, kind), trainer.get(40, unknown)
            elif number == 3:
                normalizer = dict(_fields(value))
                charsmap = normalizer.get(2, b"")
                prefix, squeeze = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    except (IndexError, KeyError, UnicodeDecodeError, struct.error, TypeError, AttributeError) as error:
        raise TextError(f"{path} is no SentencePiece model: {error!r}") from error
    if not pieces:
        raise TextError(f"{path} is no SentencePiece model: it has no pieces")
    if kind != _BPE:
        raise TextError(f"{path}: a SentencePiece model of the kind {_KINDS.get(kind, kind)}; 'bpe' is read")
    tokens, scores, types = zip(*pieces, strict=True)
    return Vocabulary(tokens, scores, types, unknown, prefix, squeeze, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value): ints of varints, bytes of all else (protobuf.dev, "Encoding")."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value: Any
                value, at = _varint(data, at)
            case 1 | 5 as fixed:
                size = 8 if fixed == 1 else 4
                value, at = data[at : at + size], at + size
            case 2:
                size, at = _varint(data, at)
                value, at = data[at : at + size], at + size
            case other:
                raise KeyError(f"wire type {other} at byte {at}")
        if at > len(data):
            raise IndexError(f"field {key >> 3} passes the end of {len(data)} bytes")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def build_bpe(vocabulary: Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` with byte fallback (LLaMA 1 and 2)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = vocabulary.unknown
    bpe = models.BPE(
        vocab=dict(vocabulary.ids),
        merges=_merges(vocabulary),
        unk_token=vocabulary.tokens[unknown] if unknown is not None else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    steps: list[Any] = [normalizers.Precompiled(vocabulary.charsmap)] if vocabulary.charsmap else []
    if vocabulary.squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if vocabulary.prefix and vocabulary.once:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        steps += [normalizers.Prepend("▁")] if vocabulary.prefix else []
        steps.append(normalizers.Replace(" ", "▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the best score: each way to cut a token in two tokens is a merge, in
    the order of the whole's score (then of the parts' ids)."""
    ids = vocabulary.ids
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True):
        if len(token) < 2 or kind not in (NORMAL, USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def add_pieces(tokenizer: Any, tokens: Sequence[str], types: Sequence[int], bare: frozenset[str] | None = None) -> None:
    """Control tokens are special (hidden from the text); user-defined ones are matched whole, and shown. bare: where
    not None, special tokens besides these swallow the white space behind them."""
    from tokenizers import AddedToken

    def entry(token: str, kind: int) -> Any:
        special = kind != USER_DEFINED
        return AddedToken(
            token, special=special, normalized=False, rstrip=special and bare is not None and token not in bare
        )

    tokenizer.add_tokens(
        [
            entry(token, kind)
            for token, kind in zip(tokens, types, strict=False)
            if kind in (CONTROL, USER_DEFINED) or (kind == UNKNOWN and token.startswith("<"))
        ]
    )
