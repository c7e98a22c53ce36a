"""Token and position embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops

__all__ = ["Embedding"]


class Embedding:
    """Rows of a table [V, H], times `scale`, as the float32 residual stream. A tied table is the head's weight."""

    __slots__ = ("ops", "scale", "table")

    def __init__(self, ops: Ops, table: Tensor | LinearWeight, scale: float = 1.0) -> None:
        self.ops, self.table, self.scale = ops, table, scale

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [T] int32 -> [T, H] float32."""
        return self.ops.embedding(ids, self.table, self.scale)

    def add_to(self, residual: Tensor, ids: Tensor) -> None:
        """residual [T, H] float32 += rows of the table; of a plain one."""
        assert isinstance(self.table, Tensor), "positions have no head that their table could be tied to"
        self.ops.embedding_add_(residual, ids, self.table, self.scale)
