"""ggml's tensor types (github.com/ggml-org/ggml, ggml-common.h): dequantised, or taken apart into codes and scales.

A row is a sequence of blocks. Those of 32 weights begin with a float16 scale d (and a minimum m); a format of 4 or 5
bits holds the low half of weight i in the low half of byte i, that of weight i + 16 in its high half. The K formats
are in gguf_k_types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_engine.weights.gguf_k_types import q2_k, q3_k, q4_k, q5_k, q6_k

__all__ = ["GGML_TYPES", "GGMLCodes", "GGMLType", "type_name"]


@dataclass(frozen=True)
class GGMLCodes:
    """How blocks of one format read as ops.QuantizedWeight with groups of a block: a scale in a block's first two
    bytes, with `offset` an offset in the next two, and the codes, which unpack(blocks, out [blocks, 32] uint8) writes.
    """

    bits: int
    offset: bool
    unpack: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class GGMLType:
    """block: weights a block; size: its bytes. dequantize: [blocks, size] uint8 -> [blocks, block] any float.

    codes: where the format is one that the kernels run as it is.
    """

    name: str
    block: int
    size: int
    dequantize: Callable[[Tensor], Tensor]
    codes: GGMLCodes | None = None


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[n, 16] uint8 -> [n, 32] float32 of 0..15."""
    out = torch.empty(packed.shape[0], 32, dtype=torch.float32)
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4
    return out


def _fifth_bits(packed: Tensor) -> Tensor:
    """[n, 4] uint8, weight i's in bit i -> [n, 32] uint8 of 0 or 16."""
    return (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 6:]).add_(_fifth_bits(blocks[:, 2:6])).sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:]).add_(_fifth_bits(blocks[:, 4:8]))
    return codes.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.view(dtype)


def _unpack_nibbles(at: int) -> Callable[[Tensor, Tensor], None]:
    def unpack(blocks: Tensor, out: Tensor) -> None:
        torch.bitwise_and(blocks[:, at:], 15, out=out[:, :16])
        torch.bitwise_right_shift(blocks[:, at:], 4, out=out[:, 16:])

    return unpack


def _unpack_bytes(blocks: Tensor, out: Tensor) -> None:
    torch.bitwise_xor(blocks[:, 2:], 128, out=out)  # two's complement to an excess of 128


GGML_TYPES = {
    0: GGMLType("F32", 1, 4, _plain(torch.float32)),
    1: GGMLType("F16", 1, 2, _plain(torch.float16)),
    2: GGMLType("Q4_0", 32, 18, _q4_0, GGMLCodes(4, False, _unpack_nibbles(2))),
    3: GGMLType("Q4_1", 32, 20, _q4_1, GGMLCodes(4, True, _unpack_nibbles(4))),
    6: GGMLType("Q5_0", 32, 22, _q5_0),
    7: GGMLType("Q5_1", 32, 24, _q5_1),
    8: GGMLType("Q8_0", 32, 34, _q8_0, GGMLCodes(8, False, _unpack_bytes)),
    10: GGMLType("Q2_K", 256, 84, q2_k),
    11: GGMLType("Q3_K", 256, 110, q3_k),
    12: GGMLType("Q4_K", 256, 144, q4_k),
    13: GGMLType("Q5_K", 256, 176, q5_k),
    14: GGMLType("Q6_K", 256, 210, q6_k),
    30: GGMLType("BF16", 1, 2, _plain(torch.bfloat16)),
}

_NOT_READ = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"},
    **{22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0"},
    **{35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}


def type_name(kind: int) -> str:
    """ggml's name of a type number, of those that are not read as well."""
    return GGML_TYPES[kind].name if kind in GGML_TYPES else _NOT_READ.get(kind, "of no known name")
