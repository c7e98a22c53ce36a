"""ggml's tensor types, dequantised (github.com/ggml-org/ggml, ggml-common.h).

A row is a sequence of blocks of 32 weights; a scale d (and a minimum m) is a float16 before the block's weights.
Nibble formats hold weight i in the low half of byte i and weight i + 16 in its high half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GGML_TYPES", "GGMLType"]


@dataclass(frozen=True)
class GGMLType:
    """block: weights a block; size: its bytes. dequantize: [blocks, size] uint8 -> [blocks, block] any float."""

    name: str
    block: int
    size: int
    dequantize: Callable[[Tensor], Tensor]


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[n, 16] uint8 -> [n, 32] float32 of 0..15."""
    out = torch.empty(packed.shape[0], 32, dtype=torch.float32)
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4
    return out


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.view(dtype)


GGML_TYPES = {
    0: GGMLType("F32", 1, 4, _plain(torch.float32)),
    1: GGMLType("F16", 1, 2, _plain(torch.float16)),
    2: GGMLType("Q4_0", 32, 18, _q4_0),
    3: GGMLType("Q4_1", 32, 20, _q4_1),
    8: GGMLType("Q8_0", 32, 34, _q8_0),
    30: GGMLType("BF16", 1, 2, _plain(torch.bfloat16)),
}
