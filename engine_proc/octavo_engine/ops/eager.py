"""A backend whose functions are run as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from octavo_engine.ops import KeptRows, Ops, TensorSpec

__all__ = ["EagerOps"]


class EagerOps:
    """`ops`, but for `record`: for forwards that are not made of ops alone, which no backend can record."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def record(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        kept: KeptRows | None = None,
        **hints: object,
    ) -> Callable[..., Tensor]:
        """`function`; with `kept`, the rows that Ops.record promises. hints: of a backend that records."""
        if kept is None:
            return function
        return lambda *tensors: function(*tensors[: len(inputs)]).index_select(0, tensors[len(inputs)])
