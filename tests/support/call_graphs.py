"""Graphs for ops that have none: calls remembered with their tensors, as a device remembers addresses."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from octavo_engine.ops.cuda_graphs import Graph

__all__ = ["CallGraph", "CallGraphs"]


class CallGraph:
    """Runs the captured function again on the captured tensors, into the captured result."""

    def __init__(self, work: Callable[[], Tensor], out: Tensor) -> None:
        self._work, self._out, self.replays = work, out, 0

    def replay(self) -> None:
        self.replays += 1
        self._out.copy_(self._work())


class CallGraphs:
    def __init__(self) -> None:
        self.captured: list[CallGraph] = []
        self.rows: list[int] = []

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        out = work()
        self.captured.append(CallGraph(work, out))
        self.rows.append(len(out))
        return self.captured[-1], out

    def free_memory(self) -> int:
        return 1_000_000 - 1000 * len(self.captured)

    @property
    def replays(self) -> dict[int, int]:
        return {n: g.replays for n, g in zip(self.rows, self.captured, strict=True) if g.replays}
