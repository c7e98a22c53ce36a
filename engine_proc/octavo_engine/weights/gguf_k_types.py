"""ggml's K formats, dequantised (github.com/ggml-org/ggml, ggml-common.h and ggml-quants.c).

A block is 256 weights with one float16 scale d, and where there are minima a second one for them, dmin. It is cut in
groups of 16 or 32 weights, each with a scale (and a minimum) of 4, 6 or 8 bits: w = d * scale * code - dmin * minimum.
Codes wider than 4 bits and of 3 bits lie in two planes, low bits and high bits. In every plane the weights run along
lanes: a plane of 32 bytes holds the same bits of weight i, i + 32, i + 64, ... in byte i from its low end up.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block: [n, 1, 1] float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float().unsqueeze(-1)


def _plane(packed: Tensor, bits: int, lanes: int = 32) -> Tensor:
    """[n, bytes] uint8 -> [n, bytes * 8 / bits] codes of `bits` bits in the order of the weights."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(-1, 1)
    codes: Tensor = packed.view(len(packed), -1, 1, lanes) >> shifts & ((1 << bits) - 1)
    return codes.flatten(1)


def _groups(codes: Tensor, size: int) -> Tensor:
    return codes.view(len(codes), -1, size).float()


def _scales_of_6_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K: eight scales and eight minima, [n, 8, 1] float32 each.

    Bytes 0-3 and 4-7 hold the first four scales and minima in their low 6 bits; the last four have their low halves in
    the low (scales) and high (minima) halves of bytes 8-11, their top 2 bits in those that bytes 0-3 and 4-7 leave.
    """
    first, second, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 63, (low & 15) | (first >> 6 << 4)], dim=1)
    minima = torch.cat([second & 63, (low >> 4) | (second >> 6 << 4)], dim=1)
    return scales.unsqueeze(-1).float(), minima.unsqueeze(-1).float()


def q2_k(blocks: Tensor) -> Tensor:
    """16 bytes of a scale (low half) and a minimum (high half) a group of 16, 64 bytes of codes, d, dmin."""
    small = blocks[:, :16].unsqueeze(-1)
    scales, minima = _half(blocks, 80) * (small & 15).float(), _half(blocks, 82) * (small >> 4).float()
    return _groups(_plane(blocks[:, 16:80], 2), 16).mul_(scales).sub_(minima).flatten(1)


def q3_k(blocks: Tensor) -> Tensor:
    """32 bytes of high bits, 64 of low ones, 12 bytes of sixteen 6-bit scales in excess of 32, d; groups of 16.

    A code is its low 2 bits, less 4 where the high bit is not set. The scales' low halves lie in bytes 0-7 as a plane
    of 8 lanes, their top 2 bits in bytes 8-11 as one of 4 lanes.
    """
    small = _plane(blocks[:, 96:104], 4, 8) | (_plane(blocks[:, 104:108], 2, 4) << 4)
    scales = _half(blocks, 108) * small.unsqueeze(-1).float().sub_(32)
    codes = _plane(blocks[:, 32:96], 2) | (_plane(blocks[:, :32], 1) << 2)
    return _groups(codes, 16).sub_(4).mul_(scales).flatten(1)


def q4_k(blocks: Tensor) -> Tensor:
    """d, dmin, 12 bytes of scales and minima a group of 32, 128 bytes of codes."""
    scales, minima = _scales_of_6_bits(blocks[:, 4:16])
    codes = _groups(_plane(blocks[:, 16:], 4), 32)
    return codes.mul_(_half(blocks, 0) * scales).sub_(_half(blocks, 2) * minima).flatten(1)


def q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K, with 32 bytes of high bits before the codes."""
    scales, minima = _scales_of_6_bits(blocks[:, 4:16])
    codes = _groups(_plane(blocks[:, 48:], 4) | (_plane(blocks[:, 16:48], 1) << 4), 32)
    return codes.mul_(_half(blocks, 0) * scales).sub_(_half(blocks, 2) * minima).flatten(1)


def q6_k(blocks: Tensor) -> Tensor:
    """128 bytes of low halves in planes of 64 bytes, 64 of top 2 bits, 16 int8 scales a group of 16, d; codes in excess
    of 32."""
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).unsqueeze(-1).float()
    codes = _plane(blocks[:, :128], 4, 64) | (_plane(blocks[:, 128:192], 2) << 4)
    return _groups(codes, 16).sub_(32).mul_(scales).flatten(1)
