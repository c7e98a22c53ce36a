"""The few things octavo needs from the running event loop that outlive a call: watched fds, callbacks, timers.

They are callbacks, not tasks of a task group, so that a client may be opened in one task and closed in another
(fixtures, lifespans), and so that a loop that is dropped leaves no pending task behind to complain about. On asyncio
and uvloop they are the loop's own readers; on trio each is a system task. What is awaited goes through anyio.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio

__all__ = ["Loop", "Waiter", "running_loop"]


class Waiter(Protocol):
    """One wait of one task: `await waiter` returns after `set_result(None)`."""

    def __await__(self) -> Any: ...
    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class Loop(Protocol):
    """The event loop a client was opened on. Only `soon` may be called from another thread."""

    def is_current(self) -> bool:
        """Is the caller running on this very loop?"""
        ...

    def is_running(self) -> bool:
        """Does it run, be it in another thread?"""
        ...

    def waiter(self) -> Waiter:
        """Cheap enough to be made for every wait."""
        ...

    def watch(self, fd: int, callback: Callable[[], object]) -> None:
        """Call back whenever fd is readable (level-triggered) until `unwatch`, which must come before the close."""
        ...

    def unwatch(self, fd: int) -> None: ...

    def soon(self, callback: Callable[[], None]) -> bool:
        """Call back in the loop's thread; from any thread, even in a finaliser. False if the loop is closed."""
        ...

    def later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after delay seconds; the returned function cancels that."""
        ...

    async def uninterrupted(self, run: Callable[[], Awaitable[None]]) -> None:
        """Await run() to its end whatever cancels the caller meanwhile; the cancellation is delivered then."""
        ...


class _AsyncioLoop:
    def __init__(self, asyncio: Any) -> None:
        self._asyncio = asyncio
        self._running: Callable[[], Any] = asyncio.get_running_loop
        self._loop = asyncio.get_running_loop()
        self.waiter: Callable[[], Waiter] = self._loop.create_future

    def is_current(self) -> bool:
        try:
            return self._running() is self._loop
        except RuntimeError:
            return False

    def is_running(self) -> bool:
        return bool(self._loop.is_running())

    def watch(self, fd: int, callback: Callable[[], object]) -> None:
        self._loop.add_reader(fd, callback)

    def unwatch(self, fd: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it watches nothing any more
            self._loop.remove_reader(fd)

    def soon(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False
        return True

    def later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        cancel: Callable[[], None] = self._loop.call_later(delay, callback).cancel
        return cancel

    async def uninterrupted(self, run: Callable[[], Awaitable[None]]) -> None:
        # A task of its own: a shielded scope would stop anyio's cancellation, but not Task.cancel().
        task = self._asyncio.ensure_future(run())
        cancelled: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await self._asyncio.shield(task)
                except self._asyncio.CancelledError as error:
                    if task.cancelled():
                        raise
                    cancelled = error
        task.result()
        if cancelled is not None:
            raise cancelled


class _TrioWaiter:
    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    def __await__(self) -> Any:
        return self._event.wait().__await__()

    def done(self) -> bool:
        return bool(self._event.is_set())

    def set_result(self, result: None, /) -> None:
        self._event.set()


class _TrioLoop:
    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._scopes: dict[int, Any] = {}

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def is_running(self) -> bool:
        return self.soon(lambda: None)

    def waiter(self) -> Waiter:
        return _TrioWaiter(self._trio.Event())

    def _spawn(self, run: Callable[[], Awaitable[None]], scope: Any) -> None:
        async def task() -> None:
            with scope:
                await run()

        self._trio.lowlevel.spawn_system_task(task, name="octavo")

    def watch(self, fd: int, callback: Callable[[], object]) -> None:
        async def run() -> None:
            while not scope.cancel_called:
                await self._trio.lowlevel.wait_readable(fd)
                callback()

        scope = self._scopes[fd] = self._trio.CancelScope()
        self._spawn(run, scope)

    def unwatch(self, fd: int) -> None:
        scope = self._scopes.pop(fd, None)
        if scope is not None:
            with contextlib.suppress(RuntimeError):
                scope.cancel()

    def soon(self, callback: Callable[[], None]) -> bool:
        try:
            self._token.run_sync_soon(callback)
        except RuntimeError:  # trio.RunFinishedError is one
            return False
        return True

    def later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        async def run() -> None:
            await self._trio.sleep(delay)
            callback()

        scope = self._trio.CancelScope()
        self._spawn(run, scope)
        cancel: Callable[[], None] = scope.cancel
        return cancel

    async def uninterrupted(self, run: Callable[[], Awaitable[None]]) -> None:
        with anyio.CancelScope(shield=True):
            await run()


def running_loop() -> Loop:
    """The loop that runs the caller. RuntimeError where there is none."""
    # A program that runs trio has imported it; octavo itself depends on neither.
    trio = sys.modules.get("trio")
    if trio is not None and hasattr(trio, "lowlevel"):
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            pass
        else:
            return _TrioLoop(trio)
    import asyncio

    return _AsyncioLoop(asyncio)
