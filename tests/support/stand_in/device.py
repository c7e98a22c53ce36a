"""A device that is none: streams, events, captures and memory, as strict about order as a real one is careless.

Work is done when it is enqueued, but nobody may count on that. A copy into pinned memory arrives when its stream has
been waited for; a copy out of it must find, by then, what it was told to send. Each stream knows up to where it has
waited for the others, and what another one wrote behind that may not be touched.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Block", "Capture", "Device", "Forbidden", "Mark", "Stream"]

GARBAGE = 0xC3
Mark = dict[int, int]  # by the number of a stream: how much of it has been enqueued


class Forbidden(AssertionError):
    """What a real device lets pass, and goes wrong with, now and then."""


@dataclass(eq=False)
class Block:
    """One allocation. written, touched: by stream, its place there."""

    nbytes: int
    pool: Pool
    written: Mark = field(default_factory=dict)
    touched: Mark = field(default_factory=dict)


@dataclass(eq=False)
class Pool:
    """Memory that captures share, or that all other work does. reserved: what was live at a time and not given back."""

    live: int = 0
    reserved: int = 0
    graphs: int = 0

    def take(self, nbytes: int) -> None:
        self.live += nbytes
        self.reserved = max(self.reserved, self.live)

    def give(self, nbytes: int) -> None:
        self.live -= nbytes


class Stream:
    """seen: what of the other streams has been waited for."""

    _numbers = itertools.count()

    def __init__(self, device: Device) -> None:
        self.device, self.number = device, next(self._numbers)
        self.length = 0
        self.seen: Mark = {}
        self.pending: list[tuple[int, Callable[[], None]]] = []  # copies under way: their place, what ends them

    @property
    def mark(self) -> Mark:
        return self.seen | {self.number: self.length}

    def wait(self, mark: Mark) -> None:
        for number, length in mark.items():
            self.seen[number] = max(length, self.seen.get(number, 0))

    def finish(self, until: int) -> None:
        ended = [end for place, end in self.pending if place <= until]
        self.pending = [(place, end) for place, end in self.pending if place > until]
        with torch.inference_mode():
            for end in ended:
                end()


class Capture:
    """What a graph does when it is replayed."""

    def __init__(self, stream: Stream, pool: Pool) -> None:
        self.stream, self.pool = stream, pool
        self.work: list[Callable[[], object]] = []
        self.results: list[Tensor] = []
        self.broken: str | None = None


class Pinned:
    """Which memory of the host is pinned."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def empty(self, shape: Any, dtype: torch.dtype | None) -> Tensor:
        made = torch.zeros(shape, dtype=dtype)
        made.untyped_storage().fill_(GARBAGE) if made.numel() else None
        self._kept[made.untyped_storage().data_ptr()] = made
        return made

    def holds(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self._kept


class Device:
    """counted: calls by name since the last `clear`; waits: what made the host wait, or may have."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.default = Stream(self)
        self.current = self.default
        self.streams = weakref.WeakSet([self.default])
        self.host: Mark = {}
        self.memory, self.pools = Pool(), dict[Any, Pool]()
        self.peak = 0
        self.outside = 0  # bytes that torch's allocator does not know of
        self.allocated: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()  # by address
        self.capture: Capture | None = None  # that is under way
        self.counted: Counter[str] = Counter()
        self.waits: list[str] = []
        self.lost = False
        self.pinned = Pinned()

    # ---- memory ------------------------------------------------------------------------------------------------

    @property
    def reserved(self) -> int:
        return self.memory.reserved + sum(pool.reserved for pool in self.pools.values())

    @property
    def live(self) -> int:
        return self.memory.live + sum(pool.live for pool in self.pools.values())

    def allocate(self, nbytes: int) -> Block:
        pool = self.memory if self.capture is None else self.capture.pool
        others = self.reserved - pool.reserved + self.outside
        if pool.live + nbytes + others > self.total and self.capture is None:
            self.empty_cache()  # as torch does before it gives up
            others = self.reserved - pool.reserved + self.outside
        if pool.live + nbytes + others > self.total:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes} bytes")
        pool.take(nbytes)
        self.peak = max(self.peak, self.live)
        block = Block(nbytes, pool)
        weakref.finalize(block, pool.give, nbytes)
        return block

    def empty_cache(self) -> None:
        self.forbid_in_capture("empty_cache")
        self.memory.reserved = self.memory.live
        for pool in self.pools.values():
            if not pool.graphs:
                pool.reserved = pool.live

    # ---- order -------------------------------------------------------------------------------------------------

    def enqueue(self, name: str, reads: Iterable[Block], writes: Iterable[Block]) -> None:
        """Count a call on the current stream. Raises Forbidden for what another stream may still be busy with."""
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        stream = self.current
        stream.wait(self.host)
        stream.length += 1
        self.counted[name] += 1
        for block in reads:
            self._behind(stream, block.written, name)
            block.touched[stream.number] = stream.length
        for block in writes:
            self._behind(stream, block.touched | block.written, name)
            block.written[stream.number] = block.touched[stream.number] = stream.length

    def _behind(self, stream: Stream, uses: Mark, name: str) -> None:
        for number, place in uses.items():
            if number != stream.number and place > stream.seen.get(number, 0):
                raise Forbidden(f"{name} on stream {stream.number} does not wait for what stream {number} does")

    def finish(self, mark: Mark) -> None:
        """The host has waited for so much."""
        for stream in list(self.streams):
            stream.finish(mark.get(stream.number, 0))
        for number, length in mark.items():
            self.host[number] = max(length, self.host.get(number, 0))

    def synchronize(self, why: str) -> None:
        self.forbid_in_capture(why)
        self.waits.append(why)
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for stream in list(self.streams):
            self.finish(stream.mark)

    # ---- captures ----------------------------------------------------------------------------------------------

    def forbid_in_capture(self, what: str) -> None:
        if self.capture is not None:
            self.capture.broken = what
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def record(self, again: Callable[[], object], results: Iterable[Tensor] = ()) -> None:
        """Where work is captured: what a replay does in its place, and which tensors hold nothing until then."""
        if self.capture is not None and self.current is self.capture.stream:
            self.capture.work.append(again)
            self.capture.results += results

    def clear(self) -> None:
        self.counted.clear()
        self.waits.clear()


def spoil(x: Tensor) -> None:
    """Fill with bytes that mean nothing."""
    if x.numel():
        flat = torch.as_strided(x, (x.untyped_storage().nbytes() // x.itemsize,), (1,), 0) if x.is_contiguous() else x
        flat.view(torch.uint8).fill_(GARBAGE)
