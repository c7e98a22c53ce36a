"""Device time of small work: many launches over buffers that the cache does not hold, as one replayed graph.

One launch between two events is 2 us too long, a graph's more, and weights that were read a moment ago come from the L2
cache. So a measurement is a list of calls, each on buffers of its own and four at least, captured in one graph; its
replays are timed, and the median over the number of calls is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

__all__ = ["DeviceClock", "Measured", "Stopwatch", "rotations", "stay_in_cache"]

_L2_BYTES = 288 << 20  # three times an RTX 5090's cache, six times an H100's, twice a B200's
_LEAST_CALLS = 4
_MOST_SECONDS = 0.06  # of replays a measurement
_MOST_REPLAYS = 30


@dataclass(frozen=True)
class Measured:
    """seconds: of one call. graph: whether calls were replayed, or launched one by one where they can't be captured."""

    seconds: float
    graph: bool


class Stopwatch(Protocol):
    def __call__(self, calls: Sequence[Callable[[], object]]) -> Measured:
        """The time of one of the calls, which do the same work on different buffers."""
        ...


def rotations(nbytes: int, most: int = 64) -> int:
    """How many buffers of so many bytes no cache holds together; at most `most`, at least one."""
    return max(1, min(most, -(-_L2_BYTES // max(1, nbytes))))


def stay_in_cache(nbytes: int, buffers: int) -> bool:
    """Whether so many buffers may be read from a cache, so that their share of a floor of memory says nothing."""
    return nbytes * buffers < _L2_BYTES


class DeviceClock:
    """A Stopwatch by CUDA events around graph replays."""

    def __call__(self, calls: Sequence[Callable[[], object]]) -> Measured:
        calls = [*calls] * -(-_LEAST_CALLS // len(calls))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
            stream.synchronize()
            replay = self._captured(calls)
            run = replay or (lambda: [call() for call in calls])
            run()
            once = self._elapsed(run)
            count = max(3, min(_MOST_REPLAYS, int(_MOST_SECONDS / max(once, 1e-6))))
            seconds = median(self._elapsed(run) for _ in range(count)) / len(calls)
        torch.cuda.current_stream().wait_stream(stream)
        return Measured(seconds, replay is not None)

    @staticmethod
    def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object] | None:
        graph = torch.cuda.CUDAGraph()
        # Not `with torch.cuda.graph`: what it gives back of the caches has to be allocated again for each measurement.
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for call in calls:
                    call()
            finally:
                graph.capture_end()
        except RuntimeError:  # a peer that synchronises or allocates by itself
            torch.cuda.synchronize()
            return None
        return graph.replay

    @staticmethod
    def _elapsed(run: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
