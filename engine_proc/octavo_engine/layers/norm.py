"""Normalisation of the residual stream: float32 in, the activation type out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.ops import Ops

__all__ = ["LayerNorm", "RMSNorm"]


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467); weight [H] float32."""

    __slots__ = ("eps", "ops", "out_dtype", "weight")

    def __init__(self, ops: Ops, weight: Tensor, eps: float, out_dtype: torch.dtype) -> None:
        self.ops, self.weight, self.eps, self.out_dtype = ops, weight, eps, out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] float32 -> [T, H] out_dtype."""
        return self.ops.rms_norm(x, self.weight, self.eps, self.out_dtype)


class LayerNorm:
    """(x - mean) / sqrt(var + eps) * weight + bias (arXiv 1607.06450); weight, bias [H] float32 or None."""

    __slots__ = ("bias", "eps", "ops", "out_dtype", "weight")

    def __init__(
        self, ops: Ops, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
    ) -> None:
        self.ops, self.weight, self.bias, self.eps, self.out_dtype = ops, weight, bias, eps, out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] float32 -> [T, H] out_dtype."""
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps, self.out_dtype)
