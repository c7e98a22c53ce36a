"""Quantised weights of every kind for tests, without a quantiser: random codes and factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo_engine.ops import QuantizedWeight

__all__ = ["KINDS", "Kind", "random_weight"]


@dataclass(frozen=True)
class Kind:
    bits: int
    group_size: int
    symmetric: bool

    def __str__(self) -> str:
        return f"w{self.bits}-{f'g{self.group_size}' if self.group_size else 'row'}-{'a' * (not self.symmetric)}sym"


KINDS = [Kind(bits, group, symmetric) for bits in (4, 8) for group in (32, 64, 128, 0) for symmetric in (True, False)]


def random_weight(kind: Kind, n: int, k: int, seed: int = 0) -> QuantizedWeight:
    """[n, k] of about unit variance over sqrt(k), with codes over their whole range."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // kind.group_size) if kind.group_size else 1
    dtype = torch.float16 if kind.group_size else torch.float32
    codes = torch.randint(0, 1 << kind.bits, (n, k), generator=generator, dtype=torch.uint8)
    unit = (12 / k) ** 0.5 / (1 << kind.bits)
    scales = (torch.rand(n, groups, generator=generator) + 0.5) * unit
    offsets = (
        None if kind.symmetric else (-(torch.rand(n, groups, generator=generator) + 7) / 15 * (1 << kind.bits)) * unit
    )
    return QuantizedWeight(
        codes, scales.to(dtype), None if offsets is None else offsets.to(dtype), kind.bits, kind.group_size
    )
