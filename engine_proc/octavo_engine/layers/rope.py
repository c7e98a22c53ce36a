"""Rotary position embedding (RoFormer, arXiv 2104.09864) and its extensions to longer contexts.

A table holds, a position, R/2 cosines then R/2 sines in float32 (see Ops.rope_and_cache), computed in float32 as the
published models were trained.

Two scalings depend on the length of the sequence: LongRoPE, with one set of factors up to the original context and
another beyond, and dynamic NTK, whose base grows with the length. A cached key was rotated when it was written, so all
of a sequence must be rotated for one length, its regime; and what else runs must not choose it (law 6). A sequence that
outgrows its regime is computed again in the next.

For LongRoPE there are two regimes, as in transformers. By dynamic NTK a prompt beyond the trained length is rotated for
just its length, so its logits are those of a forward of transformers; what is drawn keeps that base until the sequence
has grown by a share (EngineOptions.dynamic_ntk_growth) and is computed again with the base of its length then. By 0,
every token is what a forward of transformers over all before it gives, at the price of one. So near to each other bases
are worth the same: SmolLM2's perplexity on English, 512 tokens that end 12, 19, 25 and 31 % above 8192, is 0, 0, 4 and
12 % higher by the base of 8192 than by that of 10752. It is 3 to 6 % higher by that of 16384 (powers of two, as Qwen's
own code takes them, by the prompt's length: `by_prompt`), and 10 % where each key keeps the base of its own time, as in
transformers' generate. max_model_len changes none of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octavo_engine.layers.config import ConfigReader, UnsupportedModel

__all__ = ["OwnRows", "Regimes", "Rope", "RotationTable", "params_of_kind", "rotary_dim"]

_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_BLOCK = 256  # rows computed at a time
_KEPT = 256  # such blocks of sequences' own rotations, 32 MB for R = 128


class Regimes(NamedTuple):
    """For how long a sequence a model rotates one, where that makes a difference, and which rows of its tables it uses.

    lengths: ascending; there is a table for each, one after the other, the last for all longer sequences too. rows: of
    a table. by_prompt: the prompt's length decides for all that follows it, else the current one. growth: where it is
    not None there is but one table, and a longer prompt is rotated for its own length, until it has grown by more than
    this share (the engine sets it); such a rotation's rows are written behind the table for each step.
    """

    lengths: tuple[int, ...]
    rows: int
    by_prompt: bool = False
    growth: float | None = None

    def choose(self, prompt: int, tokens: int) -> tuple[int, int]:
        """For a sequence of so many tokens that began with a prompt of so many: the length that it is to be rotated
        for, and how many tokens it may have so."""
        if self.growth is not None:
            length = max(prompt, self.lengths[0])
            while (most := int(length * (1 + self.growth))) < tokens:
                length = most + 1
            return length, most
        length = next((n for n in self.lengths if n >= (prompt if self.by_prompt else tokens)), self.lengths[-1])
        return length, sys.maxsize if self.by_prompt or length == self.lengths[-1] else length

    @property
    def first_rows(self) -> dict[int, int]:
        """By the length of each table; 0: of the first, for who has chosen none."""
        return {0: 0} | {length: i * self.rows for i, length in enumerate(self.lengths)}


class OwnRows(NamedTuple):
    """Positions start .. stop - 1 of a sequence that is rotated for `length` tokens and has no table: the step's rows
    from `row` on."""

    row: int
    length: int
    start: int
    stop: int


class Rope:
    """The rotation that a config describes, in `rope_scaling` (key "type" or "rope_type") or `rope_parameters`.

    rotary_dim: R, even. max_model_len: the longest sequence to serve; None: what the scaling was made for.
    max_position: tokens that a sequence may have, by dynamic NTK `factor` times the trained length. (A factor of 1,
    InternLM's, still stretches the base beyond the trained length, without saying how far: to any max_model_len.)
    lengths: for each table, the longest sequence that it serves.
    """

    def __init__(
        self, config: ConfigReader, rotary_dim: int, max_model_len: int | None = None, *, by_prompt: bool = False
    ) -> None:
        params: Mapping[str, Any] = config.get("rope_parameters", "rope_scaling", default={})
        if not isinstance(params, Mapping) or any(isinstance(value, Mapping) for value in params.values()):
            raise UnsupportedModel("rope_parameters", params, "one flat table for all layers")
        if rotary_dim % 2:
            raise UnsupportedModel("head_dim", rotary_dim, "an even number of rotated dimensions")
        kind = params.get("rope_type") or params.get("type") or "default"
        if kind not in _SCALINGS:
            raise UnsupportedModel("rope_type", kind, ", ".join(sorted(_SCALINGS)))
        self._scale, known = _SCALINGS[kind]
        for key in params.keys() - known - _COMMON:
            raise UnsupportedModel(f"rope {kind} parameter {key}", params[key], ", ".join(sorted(known)))
        self.kind = kind
        self.rotary_dim = rotary_dim
        self.params = ConfigReader(params)
        self.theta = self.params.number("rope_theta", default=config.number("rope_theta", default=10000.0))
        self.trained = config.integer("max_position_embeddings", default=2048)
        self.original = config.integer(
            "original_max_position_embeddings",
            default=self.params.get("original_max_position_embeddings", default=self.trained),
        )
        self.max_position = self.trained
        if kind in ("linear", "yarn"):
            self.max_position = int((self.original if kind == "yarn" else self.trained) * self.factor)
        elif kind == "dynamic":
            self.max_position = max(self.trained, int(self.trained * self.factor))
            if self.factor == 1 and max_model_len is not None:
                self.max_position = max(self.trained, max_model_len)
        self.length = max_model_len or self.max_position
        lengths = [self.length]
        if kind == "dynamic":
            lengths = [self.trained]
            while by_prompt and lengths[-1] < self.length:
                lengths.append(2 * lengths[-1])
        elif self._scale is _longrope and self.original < self.length:
            lengths = [self.original, self.length]
        self.lengths = tuple(lengths)
        self.regimes: Regimes | None = None
        if len(lengths) > 1:
            self.regimes = Regimes(self.lengths, self.length, by_prompt)
        elif kind == "dynamic" and self.trained < self.length:
            self.regimes = Regimes(self.lengths, self.length, growth=0.0)

    @property
    def factor(self) -> float:
        return self.params.number("factor")

    def frequencies(self, length: int) -> tuple[Tensor, float]:
        """[R/2] float32 radians a position, of sequences rotated for so many tokens, and what cosines and sines are
        multiplied with."""
        return self._scale(self, length)

    def powers(self, theta: float | None = None) -> Tensor:
        """[R/2] theta^(2i/R): the wavelength of pair i over 2 pi."""
        exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32) / self.rotary_dim
        return (self.theta if theta is None else theta) ** exponents


def rotary_dim(config: ConfigReader, head_dim: int, default: float = 1.0) -> int:
    """The rotated dimensions of a head: partial_rotary_factor of them, of the config or of its rope_parameters."""
    inner = config.get("rope_parameters", "rope_scaling", default={})
    share = inner.get("partial_rotary_factor") if isinstance(inner, Mapping) else None
    reader = config if share is None else ConfigReader({"partial_rotary_factor": share})
    factor = reader.number("partial_rotary_factor", "rope_pct", "rotary_pct", default=default)
    if not 0 < factor <= 1:
        raise UnsupportedModel("partial_rotary_factor", factor, "a share of the head, more than 0 and at most 1")
    return int(head_dim * factor)


class RotationTable:
    """The tables of a Rope's regimes, one after the other: values [regimes * length, R] float32. Behind them, where
    sequences may have a rotation of their own, as many rows as a step has tokens.

    On the CPU a row is computed, and takes memory, when a sequence first grows so long: Gemma 3's two tables for
    131,072 positions would take 268 MB. A device's are computed at once.
    """

    def __init__(self, rope: Rope, device: torch.device, step_tokens: int) -> None:
        self._length = rope.length
        self._scales = [rope.frequencies(length) for length in rope.lengths]
        own = step_tokens if rope.regimes is not None and rope.regimes.growth is not None else 0
        self.values = torch.empty((len(self._scales) * self._length + own, rope.rotary_dim), device=device)
        self._ready = 0
        if device.type != "cpu":
            self.reach(self._length)
        self._frequencies = lru_cache(_KEPT)(rope.frequencies)
        self._block = lru_cache(_KEPT)(self._new_block)

    def reach(self, length: int) -> None:
        """See that the rows of positions below `length` are there, in all tables."""
        # Always by whole blocks: the last bit of a cosine may depend on its place among those computed together.
        while self._ready < min(length, self._length):
            stop = min(self._ready + _BLOCK, self._length)
            for i, scale in enumerate(self._scales):
                first = i * self._length
                self.values[first + self._ready : first + stop] = _rotations(self._ready, stop, *scale)
            self._ready = stop

    def own_rows(self, wanted: Sequence[OwnRows]) -> Tensor:
        """[n, R] float32 on the host, of one after the other."""
        parts: list[Tensor] = []
        for _, length, start, stop in wanted:
            while start < stop:
                block, within = divmod(start, _BLOCK)
                parts.append(self._block(length, block)[within : within + stop - start])
                start = (block + 1) * _BLOCK
        return torch.cat(parts)

    def _new_block(self, length: int, block: int) -> Tensor:
        return _rotations(block * _BLOCK, (block + 1) * _BLOCK, *self._frequencies(length))


def _rotations(start: int, stop: int, inverse: Tensor, magnitude: float) -> Tensor:
    angles = torch.arange(start, stop, dtype=torch.float32)[:, None] * inverse
    return torch.cat((angles.cos(), angles.sin()), dim=1).mul_(magnitude)


def params_of_kind(config: ConfigReader, kind: str) -> Mapping[str, Any]:
    """The rotation's parameters in layers of a kind, "full_attention" or "sliding_attention": nested by kind, or flat,
    which is of full attention alone."""
    params: Mapping[str, Any] = config.get("rope_parameters", "rope_scaling", default={})
    if any(isinstance(value, Mapping) for value in params.values()):
        return params.get(kind) or {}
    return params if kind == "full_attention" else {}


Scaling = Callable[[Rope, int], tuple[Tensor, float]]


def _default(rope: Rope, length: int) -> tuple[Tensor, float]:
    return 1.0 / rope.powers(), 1.0


def _linear(rope: Rope, length: int) -> tuple[Tensor, float]:
    """Position interpolation (arXiv 2306.15595)."""
    return 1.0 / rope.powers() / rope.factor, 1.0


def _dynamic(rope: Rope, length: int) -> tuple[Tensor, float]:
    """NTK-aware scaling of the base."""
    stretch = rope.factor * length / rope.trained - (rope.factor - 1)
    return 1.0 / rope.powers(rope.theta * stretch ** (rope.rotary_dim / (rope.rotary_dim - 2))), 1.0


def _llama3(rope: Rope, length: int) -> tuple[Tensor, float]:
    """LLaMA 3.1: long wavelengths are divided by `factor`, short ones kept, a linear blend between."""
    low, high = rope.params.number("low_freq_factor"), rope.params.number("high_freq_factor")
    inverse = 1.0 / rope.powers()
    turns = rope.original * inverse / (2 * math.pi)  # within the original context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inverse * keep + inverse / rope.factor * (1.0 - keep), 1.0


def _yarn(rope: Rope, length: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolation by frequency, and scores sharpened by the square of `magnitude`."""
    params, factor, half = rope.params, rope.factor, rope.rotary_dim // 2

    def dimension(rotations: float) -> float:  # the pair that turns so often within the original context
        return rope.rotary_dim * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(params.number("beta_fast", default=32))
    high = dimension(params.number("beta_slow", default=1))
    if params.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0.0, 1.0)
    keep = 1.0 - ramp
    mixed = 1.0 / (factor * rope.powers()) * (1.0 - keep) + 1.0 / rope.powers() * keep

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    magnitude = mscale(1.0)
    if params.get("mscale", default=0) and params.get("mscale_all_dim", default=0):
        magnitude = mscale(params.number("mscale")) / mscale(params.number("mscale_all_dim"))
    return mixed, params.number("attention_factor", default=magnitude)


def _longrope(rope: Rope, length: int) -> tuple[Tensor, float]:
    """LongRoPE (arXiv 2402.13753): searched factors a frequency, one set for short and one for long contexts."""
    key = "long_factor" if length > rope.original else "short_factor"
    factors = torch.tensor(rope.params.get(key), dtype=torch.float32)
    if factors.shape != (rope.rotary_dim // 2,):
        raise UnsupportedModel(f"rope {key}", f"{len(factors)} numbers", f"{rope.rotary_dim // 2} numbers")
    factor = rope.params.number("factor", default=rope.trained / rope.original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(rope.original)) if factor > 1 else 1.0
    return 1.0 / (factors * rope.powers()), rope.params.number("attention_factor", default=magnitude)


def _freq_factors(rope: Rope, length: int) -> tuple[Tensor, float]:
    """GGUF's form of LLaMA 3.1's scaling: a divisor a frequency, from the tensor rope_freqs.weight."""
    factors = torch.tensor(rope.params.get("freq_factors"), dtype=torch.float32)
    if factors.shape != (rope.rotary_dim // 2,):
        raise UnsupportedModel("rope_freqs.weight", f"{len(factors)} numbers", f"{rope.rotary_dim // 2} numbers")
    return 1.0 / rope.powers() / factors, 1.0


_ORIGINAL = "original_max_position_embeddings"
_SCALINGS: dict[str, tuple[Scaling, set[str]]] = {
    "default": (_default, set()),
    "linear": (_linear, {"factor"}),
    "dynamic": (_dynamic, {"factor", _ORIGINAL}),
    "llama3": (_llama3, {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL}),
    "yarn": (
        _yarn,
        {"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"}
        | {"finetuned", _ORIGINAL},
    ),
    "longrope": (_longrope, {"short_factor", "long_factor", "factor", "attention_factor", _ORIGINAL}),
    "su": (_longrope, {"short_factor", "long_factor", "factor", "attention_factor", _ORIGINAL}),
    "freq_factors": (_freq_factors, {"freq_factors"}),
}
