"""Decode steps as CUDA graphs: a forward captured once for each of a few sizes, behind `Ops.record`.

A decode step of a small model is bound by launches: about 400 of them, at 4 us of host time each, where replaying a
graph costs one. A graph has its sizes and addresses fixed. So a step of n sequences runs in the graph of the next
larger size, its inputs copied to the buffers that all graphs share; the rows past n hold what makes them do nothing.
"""

from __future__ import annotations

import logging
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from octavo_engine.ops import Progress, TensorSpec
from octavo_engine.ops.cuda_upload import Staging

__all__ = ["CudaGraph", "CudaGraphs", "Graph", "Graphs", "Recorded", "graph_sizes"]

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


class _Buffers:
    """The inputs at fixed addresses, for up to `rows` rows. Rows past those of the last run hold their fill."""

    def __init__(
        self, inputs: Sequence[TensorSpec], rows: int, widths: Mapping[str, int], device: torch.device
    ) -> None:
        self._counted = [spec.fill is None for spec in inputs]
        self._fills = [spec.fill or 0 for spec in inputs]
        self._tensors: list[Tensor] = []
        for spec in inputs:
            if spec.fill is None:  # the same in every run that comes here
                self._tensors.append(torch.arange(rows + 1, dtype=spec.dtype, device=device))
                continue
            shape = (rows, *(widths[n] if isinstance(n, str) else n for n in spec.shape[1:]))
            self._tensors.append(torch.full(shape, spec.fill, dtype=spec.dtype, device=device))
        self._filled_from = 0
        self._widths = [i for i, spec in enumerate(inputs) if any(isinstance(n, str) for n in spec.shape[1:])]
        self._shapes: list[torch.Size] = []  # of the last run's inputs whose width varies
        self._whole: list[int] = []  # the inputs that fill their rows in it, and where they go; then the others
        self._places: list[Tensor] = []
        self._parts: list[tuple[int, Tensor]] = []
        self._wide: dict[int, Tensor] = {}  # what the others hold

    def views(self, rows: int) -> list[Tensor]:
        """The inputs of a run of that many rows."""
        return [x[: rows + counted] for x, counted in zip(self._tensors, self._counted, strict=True)]

    def load(self, given: Sequence[Tensor], rows: int) -> None:
        """given: a run's inputs, on the device. Widths that vary fill the beginning of each row, its rest stays; such a
        tensor, given again, is taken to be what it was."""
        shapes = [given[i].shape for i in self._widths]
        if rows != self._filled_from or shapes != self._shapes:
            self._lay_out(given, rows)
            self._filled_from, self._shapes = rows, shapes
        if self._whole:
            torch._foreach_copy_(self._places, [given[i] for i in self._whole])  # one launch where all are of one type
        for i, place in self._parts:
            if self._wide.get(i) is not given[i]:
                place.copy_(given[i])
                self._wide[i] = given[i]

    def _lay_out(self, given: Sequence[Tensor], rows: int) -> None:
        self._whole, self._places, self._parts = [], [], []
        self._wide.clear()
        for i, (buffer, counted, fill) in enumerate(zip(self._tensors, self._counted, self._fills, strict=True)):
            if counted:
                continue
            if rows < self._filled_from:
                buffer[rows : self._filled_from].fill_(fill)
            place = buffer[tuple(slice(n) for n in given[i].shape)]
            if place.shape == buffer[:rows].shape:
                self._whole.append(i)
                self._places.append(place)
            else:
                self._parts.append((i, place))


class Recorded:
    """A function over ops that runs as a graph where one fits, and call by call otherwise.

    Inputs may lie on the host or on the device. What it returns from a graph is overwritten by the next run of a graph.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        staging: Staging,
        graphs: Graphs | None = None,
        *,
        rows: int = 0,
        widths: Mapping[str, int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """rows: the most of a run that graphs serve; 0, or graphs None: none is captured."""
        self._function, self._inputs, self._staging = function, inputs, staging
        self.sizes = graph_sizes(rows) if graphs is not None else []
        self._counted = [spec.fill is None for spec in inputs]
        self._graphs: dict[int, tuple[Graph, Tensor]] = {}
        self._last: tuple[int, Graph, Tensor] | None = None  # rows, their graph, and what it makes of them
        if graphs is None or not self.sizes:
            return
        self._buffers = _Buffers(inputs, rows, widths or {}, staging.device)
        began, before = time.monotonic(), graphs.free_memory()
        for done, size in enumerate(reversed(self.sizes)):
            if progress is not None:
                progress("capture", done, len(self.sizes), f"decode steps of {size}")
            self._graphs[size] = graphs.capture(partial(function, *self._buffers.views(size)))
        if progress is not None:
            progress("capture", len(self.sizes), len(self.sizes), "")
        log.info(
            "%d CUDA graphs of 1 to %d rows: %.0f MB of device memory, %.1f s",
            len(self.sizes), rows, (before - graphs.free_memory()) / 1e6, time.monotonic() - began,
        )  # fmt: skip

    def __call__(self, *given: Tensor) -> Tensor:
        rows = self._rows(given)
        sent = self._staging.upload(given)
        if rows is None:
            return self._function(*sent)
        self._buffers.load(sent, rows)
        if self._last is None or self._last[0] != rows:
            graph, out = self._graphs[self.sizes[bisect_left(self.sizes, rows)]]
            self._last = rows, graph, out[:rows]
        _, graph, out = self._last
        graph.replay()
        return out

    def _rows(self, given: Sequence[Tensor]) -> int | None:
        """The rows of a run that a graph serves: as many in every input, and at most those of the largest graph."""
        count = given[0].shape[0] - self._counted[0]
        if not self.sizes or not 0 < count <= self.sizes[-1]:
            return None
        rows = [x.shape[0] for x in given]
        return count if rows == [count + counted for counted in self._counted] else None
