"""A backend whose functions are run as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from octavo_engine.ops import KeptRows, Ops, Progress, TensorSpec

__all__ = ["EagerOps"]


class EagerOps:
    """`ops`, but for `record` and `capture`: for forwards not made of ops alone, which no backend can record."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def record(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        kept: KeptRows | None = None,
    ) -> Callable[..., Tensor]:
        """`function`; with `kept`, the rows that Ops.record promises."""
        if kept is None:
            return function
        return lambda *tensors: function(*tensors[: len(inputs)]).index_select(0, tensors[len(inputs)])

    def capture(
        self, work: Callable[[int], Tensor], most: int, progress: Progress | None = None
    ) -> Callable[[int], Tensor]:
        return work
