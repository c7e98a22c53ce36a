"""Normalisation: of the residual stream, float32 in and the activation type out; of what a block adds; of q and k."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.ops import Ops

__all__ = ["HeadNorm", "LayerNorm", "Norm", "RMSNorm", "query_key_norms"]


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467); weight [H] float32."""

    __slots__ = ("eps", "ops", "out_dtype", "weight")

    def __init__(self, ops: Ops, weight: Tensor, eps: float, out_dtype: torch.dtype) -> None:
        self.ops, self.weight, self.eps, self.out_dtype = ops, weight, eps, out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] float32 -> [T, H] out_dtype."""
        return self.ops.rms_norm(x, self.weight, self.eps, self.out_dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """residual [T, H] float32 += norm(x); x [T, H] float32."""
        self.ops.rms_norm_add_(residual, x, self.weight, self.eps)


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


Norm = RMSNorm | LayerNorm


class HeadNorm:
    """Groups of `size` columns of qkv from `start` on, each normalised by itself, in place; see Ops.head_norm_."""

    __slots__ = ("bias", "centred", "eps", "ops", "size", "start", "weight")

    def __init__(
        self, ops: Ops, weight: Tensor, bias: Tensor | None, eps: float, *, size: int, start: int, centred: bool
    ) -> None:
        self.ops, self.weight, self.bias, self.eps = ops, weight, bias, eps
        self.size, self.start, self.centred = size, start, centred

    def __call__(self, qkv: Tensor, positions: Tensor) -> None:
        """qkv [T, N] in the activation type, changed in place: one of Attention's edits."""
        self.ops.head_norm_(
            qkv, self.weight, self.bias, self.eps, size=self.size, start=self.start, centred=self.centred
        )


def query_key_norms(
    ops: Ops,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    head_dim: int | None,
    centred: bool = False,
) -> tuple[HeadNorm, ...]:
    """Of q and k before they are rotated: RMSNorm, or LayerNorm where `centred`.

    weights, biases: of q [Hq D] and of k [Hkv D] float32, a weight of one head repeated for all. head_dim: every head
    by itself, in one op; None: q over its whole width, and k over its.
    """
    if head_dim is not None:
        bias = None if biases is None else torch.cat(biases)
        return (HeadNorm(ops, torch.cat(weights), bias, eps, size=head_dim, start=0, centred=centred),)
    norms, start = [], 0
    for i, weight in enumerate(weights):
        bias = None if biases is None else biases[i]
        norms.append(HeadNorm(ops, weight, bias, eps, size=len(weight), start=start, centred=centred))
        start += len(weight)
    return tuple(norms)
