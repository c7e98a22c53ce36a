"""One answer in the terminal: Ctrl-C ends it and nothing else, and what it took is measured."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

__all__ = ["Meter", "interruptible"]


@asynccontextmanager
async def interruptible() -> AsyncIterator[None]:
    """Ctrl-C ends the block quietly. Its errors come out as they are, not in a task group's wrapping."""
    failure: Exception | None = None

    async def watch(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as interrupts:
            task_status.started()
            async for _ in interrupts:
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch, tasks.cancel_scope)
        try:
            yield
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Meter:
    """Tokens and times of one answer."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = self.last = 0.0
        self.first_tokens = self.tokens = 0

    def count(self, tokens: int) -> None:
        if not tokens:
            return
        self.last = time.perf_counter()
        if not self.tokens:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens

    def summary(self) -> str:
        if not self.tokens:
            return "[no tokens]"
        text = f"[{self.tokens} tokens, the first after {self.first - self.started:.2f} s"
        if self.tokens > self.first_tokens:
            text += f", {(self.tokens - self.first_tokens) / (self.last - self.first):.1f} tokens/s"
        return text + "]"
