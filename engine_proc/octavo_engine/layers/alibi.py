"""Attention with linear biases (arXiv 2108.12409): the slopes of an even geometric sequence, one a head.

A count of heads that is no power of two has two readings in published models; both agree where it is one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["alibi_slopes", "mpt_alibi_slopes"]


def alibi_slopes(num_heads: int) -> Tensor:
    """[num_heads] float32, as the paper's code, BLOOM, Falcon and Baichuan do.

    A geometric sequence from 2^(-8/n) for a power of two n; other counts take the slopes of the power of two below,
    then every second slope of the one above.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = _sequence(below) + _sequence(2 * below)[0::2][: num_heads - below]
    return torch.tensor(slopes, dtype=torch.float32)


def mpt_alibi_slopes(num_heads: int, bias_max: float) -> Tensor:
    """[num_heads] float32, as MPT does: the last slope of a power of two is 2^-bias_max.

    Other counts take the slopes of the power of two above, the odd ones first, as far as there are heads.
    """
    slopes = _sequence(2 ** math.ceil(math.log2(num_heads)), bias_max)
    if len(slopes) != num_heads:
        slopes = (slopes[1::2] + slopes[0::2])[:num_heads]
    return torch.tensor(slopes, dtype=torch.float32)


def _sequence(count: int, bias_max: float = 8.0) -> list[float]:
    return [2.0 ** (-bias_max * (i + 1) / count) for i in range(count)]
