"""A device that puts off all work until somebody waits for it: what asks for a result early, gets none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.errors import DeviceLost
from octavo_engine.models.base import CausalLM
from octavo_engine.ops import Ops


def deferred_runner(model: CausalLM, ops: Ops, **sizes: Any) -> DeviceRunner:
    return DeviceRunner(model, ops, queue=DeferredQueue(), **sizes)


class Deferred:
    """Work in a DeferredQueue."""

    def __init__(self, queue: DeferredQueue, work: Callable[[], None]) -> None:
        self._queue, self._work = queue, work
        self.ran = False
        self._error: Exception | None = None

    def run(self) -> None:
        self.ran = True
        try:
            with torch.inference_mode():
                self._work()
        except Exception as error:  # as on a device, whoever waits hears of it
            self._error = error

    def wait(self) -> None:
        self._queue.run_until(self)
        if self._error is not None:
            raise self._error


class DeferredQueue:
    """`break_device` makes it answer no more; `most` tells how much lay in it at a time."""

    def __init__(self) -> None:
        self._waiting: deque[Deferred] = deque()
        self.lost = False
        self.most = 0

    def enqueue(self, work: Callable[[], None]) -> Deferred:
        deferred = Deferred(self, work)
        self._waiting.append(deferred)
        self.most = max(self.most, len(self._waiting))
        return deferred

    def run_until(self, last: Deferred) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: unspecified launch failure")
        while not last.ran:
            self._waiting.popleft().run()

    def fetch(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def check(self) -> None:
        while self._waiting and not self.lost:
            self._waiting.popleft().run()
        if self.lost:
            raise DeviceLost("the device was lost: unspecified launch failure")

    def make_room(self) -> str:
        return "the fake has 0 MB free of 1 MB"
