"""The two-layer feed-forward block, plain or gated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.layers.linear import Linear

__all__ = ["MLP"]


class MLP:
    """W_down act(W_up x); with a gated `up` (gate and up stacked): W_down (act(W_gate x) * W_up x)."""

    __slots__ = ("down", "up")

    def __init__(self, up: Linear, down: Linear) -> None:
        self.up, self.down = up, down

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """residual [T, H] float32 += MLP(x); x [T, H] in the activation type."""
        self.down.add_to(residual, self.up(x))

    def __call__(self, x: Tensor) -> Tensor:
        """MLP(x) [T, H] float32, for a norm or a gate to follow."""
        return self.down(self.up(x), torch.float32)
