"""A device that works by itself: what is enqueued runs in that order, and the host learns of it when it asks."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from octavo_engine.execution.errors import DeviceLost, OutOfMemory

__all__ = ["CudaQueue", "Done", "InlineQueue", "Queue", "TypedErrors", "no_memory", "open_queue"]

_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def no_memory(error: Exception) -> bool:
    """Has the device run out of it? Graphs, pinned memory and our library ask CUDA itself: its errors have no type."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


class Done(Protocol):
    """Work that was enqueued."""

    def wait(self) -> None:
        """Block until it is done. Raises what it raised, if that shows only now."""
        ...


class Queue(Protocol):
    def enqueue(self, work: Callable[[], None]) -> Done:
        """`work` calls ops on tensors of the device, and reads none of them on the host. It runs in inference mode, in
        which this is called."""
        ...

    def fetch(self, x: Tensor) -> Tensor:
        """Within `work`: a tensor of the host that holds x once the work is done, until its Done is dropped."""
        ...

    def check(self) -> None:
        """After an error: raises DeviceLost if the device answers no more. Waits for all that was enqueued."""
        ...

    def make_room(self) -> str:
        """After an allocation failed: give back what is kept for later ones, and say how much memory there is."""
        ...


class CudaQueue:
    """Torch's current stream of a CUDA device. What was fetched holds for as long as what `enqueue` gave is kept.

    The pinned memory for it is never given back: torch, when it gets back what a copy went to, records an event, and
    where the device is lost by then it ends the process, before anybody could say so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no such device"
        self._idle: defaultdict[int, list[Tensor]] = defaultdict(list)  # by their bytes, a power of two
        self._lent: list[Tensor] = []  # to the work that is being enqueued

    def enqueue(self, work: Callable[[], None]) -> Done:
        self._lent = []
        work()
        done = _CudaDone()
        weakref.finalize(done, self._take_back, self._lent)
        return done

    def fetch(self, x: Tensor) -> Tensor:
        size = max(512, 1 << (x.nbytes - 1).bit_length())
        idle = self._idle[size]
        block = idle.pop() if idle else torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._lent.append(block)
        host = block[: x.nbytes].view(x.dtype).view(x.shape)
        host.copy_(x, non_blocking=True)
        return host

    def _take_back(self, blocks: list[Tensor]) -> None:
        """Who gets one next has his copy behind any that is still to come."""
        for block in blocks:
            self._idle[block.nbytes].append(block)

    def check(self) -> None:
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:  # such errors stay: whatever is called next on this context raises them too
            first = str(error).strip().split("\n", 1)[0]
            raise DeviceLost(
                f"{self._device} ({self._name}) was lost: {first}; the engine must be started again "
                "(CUDA_LAUNCH_BLOCKING=1 shows which kernel it was)"
            ) from error

    def make_room(self) -> str:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return f"{self._device} has {free / 1e6:.0f} MB free of {total / 1e6:.0f} MB"


class _CudaDone:
    """Recorded when made. The waiting thread sleeps, it does not spin: the next step is queued already, so that waking
    up late costs the device nothing, and the cores are the host application's."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()


class InlineQueue:
    """Where ops are done when they return."""

    def enqueue(self, work: Callable[[], None]) -> Done:
        work()
        return _NothingToWaitFor()

    def fetch(self, x: Tensor) -> Tensor:
        return x.clone()

    def check(self) -> None:
        pass

    def make_room(self) -> str:
        return "the host has no more memory"


class _NothingToWaitFor:
    def wait(self) -> None:
        pass


def open_queue(device: torch.device) -> Queue:
    return CudaQueue(device) if device.type == "cuda" else InlineQueue()


class TypedErrors:
    """Raises OutOfMemory in place of torch's own error, and DeviceLost in place of whatever a lost device leads to.

    what: its string tells, for the message, what the memory was wanted for.
    """

    __slots__ = ("_queue", "_what")

    def __init__(self, queue: Queue, what: object) -> None:
        self._queue, self._what = queue, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, (DeviceLost, OutOfMemory)):
            return
        self._queue.check()
        if no_memory(error):
            raise OutOfMemory(
                f"out of memory in {self._what}: {self._queue.make_room()}; lower EngineOptions.gpu_memory_utilization "
                "(or kv_cache_memory), max_num_batched_tokens or max_num_seqs"
            ) from error
