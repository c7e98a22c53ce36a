"""Decode steps as CUDA graphs: their work captured once for each of a few sizes, behind `Ops.capture`.

A decode step of a small model is bound by launches: about 400 of them, at 4 us of host time each, where replaying a
graph costs one. A graph has its sizes and addresses fixed. So a step of n sequences runs in the graph of the next
larger size and reads its inputs where they always lie; the rows past n hold what makes them do nothing.
"""

from __future__ import annotations

import logging
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from octavo_engine.ops import Progress

__all__ = ["Captured", "CudaGraph", "CudaGraphs", "Graph", "Graphs", "graph_sizes"]

log = logging.getLogger("octavo.engine.ops")


def graph_sizes(most: int) -> list[int]:
    """The rows of the graphs that serve 1..most: close where a step is short, a few per cent apart where it is long."""
    few = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128]
    many = [*range(160, 513, 32), *range(576, 1025, 64), *range(1152, most + 1, 128)]
    return [n for n in few + many if n < most] + [most] * (most > 0)


class Graph(Protocol):
    """Work captured once, with the addresses that it had then."""

    def replay(self) -> None:
        """Enqueue the work again."""
        ...


class Graphs(Protocol):
    """Captures graphs that share one pool of memory, and says how much of the device's is free."""

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """`work`, run and captured, and the tensor it returns: each replay writes it again, and so may each replay of
        another graph."""
        ...

    def free_memory(self) -> int:
        """Bytes of the device that nobody holds."""
        ...


class CudaGraph:
    """One torch.cuda.CUDAGraph."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def replay(self) -> None:
        self._graph.replay()


class _Foreign:
    """The memory of a tensor, for one that does not keep it (CUDA array interface 3)."""

    def __init__(self, x: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": (x.nbytes,), "typestr": "|u1", "data": (x.data_ptr(), False), "version": 3
        }  # fmt: skip


class CudaGraphs:
    """`Graphs` on a device. Captured largest first, every later one finds its memory in the pool, that of its result
    too: a result is read before the next replay, so no graph keeps it to itself. (256 rows of logits over 128,256
    tokens are 131 MB, those of all 15 sizes up to there 644 MB.) That takes torch's own allocator: CUDA's, which
    PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync chooses, has its own say about what nobody holds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch_keeps = torch.cuda.get_allocator_backend() == "native"
        self._pool = torch.cuda.graph_pool_handle()
        self._alive: weakref.WeakSet[CudaGraph] = weakref.WeakSet()  # that use the pool
        # One for all: cuBLAS keeps a workspace for each stream that it has seen.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        if not self._alive:  # torch takes a pool away with the last graph that used it
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            work()  # what initialises itself at first use (cuBLAS, lazily loaded kernels) can't while it is captured
            torch.cuda.synchronize(self._device)
            # Not `with torch.cuda.graph`, which collects garbage and empties the allocator each time: seconds in all.
            # "thread_local": other threads of the process may pin memory or ask for events meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = work()
            except BaseException:
                with suppress(RuntimeError):  # of a capture that is broken, which says less than what broke it
                    graph.capture_end()
                raise
            graph.capture_end()
            graph.replay()  # the first one takes memory, and a millisecond, that no step is to find missing
        current.wait_stream(self._stream)
        made = CudaGraph(graph)
        self._alive.add(made)
        if not self._torch_keeps:
            return made, out
        return made, torch.as_tensor(_Foreign(out), device=out.device).view(out.dtype).view(out.shape)

    def free_memory(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]


class Captured:
    """`work` (see Ops.capture), captured once for each of a few sizes: rows that are asked for beyond `most` raise
    IndexError."""

    def __init__(
        self, work: Callable[[int], Tensor], most: int, graphs: Graphs, progress: Progress | None = None
    ) -> None:
        self.sizes = graph_sizes(most)
        self._graphs: dict[int, tuple[Graph, Tensor]] = {}
        self._of_rows: dict[int, tuple[Graph, Tensor]] = {}  # as far as they were asked for
        began, before = time.monotonic(), graphs.free_memory()
        for done, size in enumerate(reversed(self.sizes)):
            if progress is not None:
                progress("capture", done, len(self.sizes), f"decode steps of {size}")
            self._graphs[size] = graphs.capture(partial(work, size))
        if progress is not None:
            progress("capture", len(self.sizes), len(self.sizes), "")
        log.info(
            "%d CUDA graphs of 1 to %d rows: %.0f MB of device memory, %.1f s",
            len(self.sizes), most, (before - graphs.free_memory()) / 1e6, time.monotonic() - began,
        )  # fmt: skip

    def __call__(self, rows: int) -> Tensor:
        found = self._of_rows.get(rows)
        if found is None:
            graph, out = self._graphs[self.sizes[bisect_left(self.sizes, rows)]]
            found = self._of_rows[rows] = graph, out[:rows]
        found[0].replay()
        return found[1]
