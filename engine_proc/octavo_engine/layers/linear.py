"""Linear layers: a packed weight, a bias, and how they shard."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo_engine.ops import Activation

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops

__all__ = ["Linear", "Parallel"]


class Parallel(Enum):
    """How a layer divides over tensor-parallel ranks (Megatron-LM, arXiv 1909.08053).

    COLUMN: each rank holds some output rows of every merged part, and the results stay divided. ROW: each rank
    holds the input columns that a column-parallel layer left it, the results are summed over ranks, and the bias is
    added once. REPLICATED: every rank holds all of it.
    """

    COLUMN = "column"
    ROW = "row"
    REPLICATED = "replicated"


class Linear:
    """y = x W^T + b for one weight, or for several that read the same x and were stacked before packing.

    parts: output features of each stacked weight, so that a shard can cut each of them (q, k and v by heads, gate
    and up by the same columns). A layer with a gated weight returns act(gate) * up.
    """

    __slots__ = ("act", "bias", "ops", "parallel", "parts", "weight")

    def __init__(
        self,
        ops: Ops,
        weight: LinearWeight,
        bias: Tensor | None,
        *,
        parts: tuple[int, ...],
        parallel: Parallel,
        act: Activation = Activation.NONE,
    ) -> None:
        self.ops, self.weight, self.bias = ops, weight, bias
        self.parts, self.parallel, self.act = parts, parallel, act

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """x [T, K] -> act(x W^T + b) [T, N] of x.dtype, or out_dtype."""
        return self.ops.linear(x, self.weight, self.bias, act=self.act, out_dtype=out_dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """residual [T, N] float32 += x W^T + b."""
        self.ops.linear_add_(residual, x, self.weight, self.bias)
