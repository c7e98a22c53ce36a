"""Attention with linear biases (arXiv 2108.12409)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["alibi_slopes"]


def alibi_slopes(num_heads: int, bias_max: float = 8.0) -> Tensor:
    """[num_heads] float32, as the paper's code, BLOOM, Falcon, Baichuan and MPT do.

    A geometric sequence from 2^(-bias_max/n) to 2^-bias_max for a power of two n; other counts take the slopes of the
    power of two below, then every second slope of the one above. (MPT takes the odd slopes of the one above, then the
    even ones: the same numbers in the same order.)
    """
    below = 2 ** math.floor(math.log2(num_heads))

    def sequence(count: int) -> list[float]:
        return [2.0 ** (-bias_max * (i + 1) / count) for i in range(count)]

    slopes = sequence(below) + sequence(2 * below)[0::2][: num_heads - below]
    return torch.tensor(slopes, dtype=torch.float32)
