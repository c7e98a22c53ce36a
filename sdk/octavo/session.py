"""One opened client from its first fd to its last: engine, transport and router, and how they end together.

AsyncClient is a thin handle on this, so that a client nobody holds any more is noticed and its engine ended.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio

from octavo import wire
from octavo.engines import JoinedEngine, SpawnedEngine
from octavo.errors import (
    ClientClosed,
    DeviceLost,
    EngineDead,
    EngineError,
    EngineStartError,
    EngineUnresponsive,
    InvalidOption,
    ModelError,
    OctavoError,
    ProtocolMismatch,
)
from octavo.loop import Loop, running_loop
from octavo.options import EngineOptions
from octavo.router import Router
from octavo.succession import Succession

__all__ = ["Session"]

log = logging.getLogger("octavo")
# Without a handler, the logging module would print warnings to the host's stderr.
log.addHandler(logging.NullHandler())

# Seconds between two Hellos until the first answer, and those an announced exit may take.
_HELLO_EVERY = 0.5
_LAST_WORDS = 0.5
_TAIL_IN_MESSAGE = 12
_ELSEWHERE = "the client belongs to the event loop that opened it, and this is another one"


class Session:
    """State: new, opening, open, closing, closed. A dead engine leaves it open: every request says why."""

    def __init__(
        self,
        engine: SpawnedEngine | JoinedEngine,
        options: EngineOptions,
        on_progress: Callable[[wire.Progress], None] | None,
        succession: Succession | None = None,
    ) -> None:
        self.on_progress = on_progress
        self.succession = succession or Succession()
        self._engine = engine
        self._options = options
        self._state = "new"
        self._router: Router | None = None
        self._loop: Loop | None = None
        self._owner = (0, 0)  # process and thread
        self._settled: anyio.Event | None = None  # the engine is ready, or will not be
        self._opened: anyio.Event | None = None  # opening has ended one way or the other
        self._over: anyio.Event | None = None  # the engine has died, or the client is closed
        self._final = False  # the caller has closed it: nothing is to follow
        self._ended: anyio.Event | None = None
        self._rung = "gone"
        self._greeted = False
        self._lost = self._last_lost = ""
        self._dead: Callable[[], OctavoError] | None = None
        self._progress_error: BaseException | None = None
        self._last_progress = ""
        self._finalizer: Callable[[], object] | None = None

    @property
    def ready(self) -> wire.Ready | None:
        return self._router.ready if self._router is not None else None

    @property
    def address(self) -> str:
        """Where others join the engine; "" where none can."""
        return self._engine.address

    @property
    def router(self) -> Router:
        """Raises ClientClosed unless open, and called on the loop that opened it; EngineDead between two engines."""
        self.succession.check()
        if self._state != "open" or self._router is None or self._loop is None:
            what = "has been closed" if self._state in ("closing", "closed") else "is not open yet"
            raise ClientClosed(f"the client {what}")
        if os.getpid() != self._owner[0]:
            raise ClientClosed("the client belongs to the process that opened it, and this is a fork of that")
        if not self._loop.is_current():
            raise ClientClosed(_ELSEWHERE)
        return self._router

    # ---- open ------------------------------------------------------------------------------------------------------

    async def open(self, owner: object) -> None:
        if self._state in ("opening", "open") and self._loop is not None and not self._loop.is_current():
            raise ClientClosed(f"{_ELSEWHERE}; restart() begins anew on this one")
        if self._state == "opening" and self._opened is not None:
            await self._opened.wait()
        if self._state == "open":
            return
        if self._state != "new":
            raise ClientClosed("the client has been closed; make a new one")
        self._state = "opening"
        self._loop = loop = running_loop()
        self._owner = (os.getpid(), threading.get_ident())
        self._settled = settled = anyio.Event()
        self._opened, self._over = anyio.Event(), anyio.Event()
        # At exit, too, even if the loop still runs in another thread: nothing of us may stay behind.
        self._finalizer = weakref.finalize(owner, self._abandoned).detach
        try:
            self._engine.start(loop, self._on_dead)
            assert self._engine.transport is not None
            self._router = router = Router(self._engine.transport, loop, self._options.heartbeat_timeout)
            router.on_ready = settled.set
            router.on_dying = self._on_dying
            router.on_progress = self._on_progress
            router.on_malformed = self._on_malformed
            router.on_silent = self._on_silent
            self._engine.transport.start(loop, router.receive, self._on_lost)
            await self._greet(router, settled)
            self._engine.connected()
        except BaseException:
            try:
                await loop.uninterrupted(self._give_up)
            finally:
                self._opened.set()
            raise
        self._state = "open"
        self._opened.set()

    async def _greet(self, router: Router, settled: anyio.Event) -> None:
        with anyio.move_on_after(self._options.ready_timeout):
            while not settled.is_set():
                if not self._greeted:
                    router.send(wire.Hello(wire.PROTOCOL_VERSION))
                with anyio.move_on_after(_HELLO_EVERY):
                    await settled.wait()
        if self._progress_error is not None:
            raise self._progress_error
        if self._dead is not None:
            raise self._dead()
        ready = router.ready
        if ready is None:
            doing = f"it was at: {self._last_progress}; " if self._last_progress else ""
            if not doing and self._engine.process is None:
                lost = f" ({self._last_lost})" if self._last_lost else ""
                doing = f"none answers at {self.address}{lost}; start one there (octavo engine --bind), or "
            raise EngineStartError(
                f"waited {self._options.ready_timeout:g} s for the engine to become ready; {doing}raise "
                f"{self._engine.knob.format('ready_timeout')}{self._tail()}",
                stderr_tail=self._engine.process.stderr_tail if self._engine.process else "",
            )
        if ready.protocol != wire.PROTOCOL_VERSION:
            raise ProtocolMismatch(
                f"the engine (octavo {ready.version}) speaks protocol {ready.protocol}, this client "
                f"{wire.PROTOCOL_VERSION}: install the same version of octavo on both sides"
            )

    async def _give_up(self) -> None:
        """Opening failed: the fastest way out."""
        self._state = "closing"
        try:
            if self._engine.process is not None:
                await self._engine.process.kill()
        finally:
            self._dispose()

    # ---- news from the engine --------------------------------------------------------------------------------------

    def _on_progress(self, progress: wire.Progress) -> None:
        self._greeted = True
        self._last_progress = f"{progress.stage} {progress.text}".strip()
        if self.on_progress is None:
            return
        try:
            self.on_progress(progress)
        except BaseException as error:  # it is the opener's to see
            self._progress_error = error
            assert self._settled is not None
            self._settled.set()

    def _on_dying(self) -> None:
        """It said why it ends. Wait a moment for the exit code, if there is one to be had."""
        assert self._loop is not None
        self._loop.later(_LAST_WORDS if self._engine.process is not None else 0, lambda: self._on_dead(""))

    def _on_lost(self, why: str | EngineError) -> None:
        if isinstance(why, EngineError):
            self._die(lambda: type(why)(*why.args))
        elif self.ready is None:  # it is only not there yet, and who comes in its place has not heard of us
            self._greeted = False
            self._last_lost = why
        elif self._loop is not None:
            self._loop.soon(lambda: self._on_dead(why))

    def _on_malformed(self, why: str) -> None:
        self._lost = why = f"{why}; is it an engine of octavo, at {self.address}?" if self.address else why
        self._die(lambda: ProtocolMismatch(why + self._tail()))

    def _on_silent(self) -> None:
        """It hangs. What is in flight fails; should the engine come to, it learns to free their pages and goes on."""
        assert self._router is not None
        log.warning("%s", str(self._unresponsive()).split("\n", 1)[0])
        self._router.abort(self._router.fail_in_flight(self._unresponsive))

    def _unresponsive(self) -> EngineUnresponsive:
        pid = self.ready.pid if self.ready is not None else "?"
        return EngineUnresponsive(
            f"nothing came from the engine (pid {pid}) for {self._options.heartbeat_timeout:g} s, not even the answer "
            "to a heartbeat: it hangs, is stopped, or a step takes that long; if it is the step, raise "
            f"{self._engine.knob.format('heartbeat_timeout')}{self._tail()}"
        )

    def _on_dead(self, why: str) -> None:
        if self._router is None:
            return
        self._router.receive()  # what it sent before it ended still counts
        self._lost = why
        self._die(self._why)
        if self._engine.process is None and self._engine.transport is not None:
            # ZeroMQ would connect again, and send what was not sent yet to an engine that would answer nobody.
            self._engine.transport.flush_and_close(0.0)

    def _die(self, why: Callable[[], OctavoError]) -> None:
        if self._dead is not None or self._router is None:
            return
        self._dead = why
        if self._state == "open":
            log.warning("%s", str(why()).split("\n", 1)[0])
        self._router.fail_all(why)
        for event in (self._settled, self._over):
            if event is not None:
                event.set()

    def _why(self) -> OctavoError:
        """A new error for each that needs one: raising one instance in several tasks would mix their tracebacks."""
        process = self._engine.process
        exit_code, tail = (process.exit_code, process.stderr_tail) if process is not None else (None, "")
        dying = self._router.dying if self._router is not None else None
        what = self._lost or (process.describe_exit() if process is not None else "the engine went away")
        if dying is not None:
            if dying.code == "protocol":
                return ProtocolMismatch(dying.message)
            if dying.code == "model":
                return ModelError(dying.message, exit_code, tail)
            if dying.code == "invalid_option" and (error := _invalid_option(dying.message)) is not None:
                return error
            what = f"{dying.message} ({what})"
        if self.ready is None:
            when = "" if dying is not None else " before it was ready"
            if self._lost:
                return ProtocolMismatch(self._lost + self._tail())
            return EngineStartError(what + when + self._tail(), exit_code, tail)
        dead = DeviceLost if dying is not None and dying.code == "device_lost" else EngineDead
        return dead(what + self._tail(), exit_code, tail)

    def _tail(self) -> str:
        process = self._engine.process
        lines = process.stderr_tail.splitlines()[-_TAIL_IN_MESSAGE:] if process is not None else []
        return "; last stderr:\n" + "\n".join(lines) if lines else ""

    # ---- close -----------------------------------------------------------------------------------------------------

    async def died(self) -> OctavoError:
        """Wait until the engine has, and say of what. Raises ClientClosed."""
        if self._over is None:
            raise ClientClosed("the client is not open yet")
        await self._over.wait()
        if self._dead is None:
            raise ClientClosed("the client has been closed")
        return self._dead()

    async def succeeded(self) -> Session:
        """Close this one, for another that is yet to be opened. Raises ClientClosed where the caller has closed it."""
        engine = self._engine.again()
        try:
            await self._close()
            if self._final:
                raise ClientClosed("the client has been closed; make a new one")
        except BaseException:
            engine.remove_files(last=True)
            raise
        return Session(engine, self._options, self.on_progress, self.succession)

    async def loras(self, make: Callable[[int], Any]) -> tuple[wire.LoraInfo, ...]:
        """Load, unload or list adapters: what is loaded then. Raises LoraError."""
        return self.succession.know(await self.router.loras(make))

    async def load_again(self) -> None:
        """The adapters that the last engine had."""
        if self._router is not None:
            await self.succession.load_again(self._router)

    async def close(self) -> str:
        ours = self._loop is None or self._loop.is_current() or os.getpid() != self._owner[0]
        if self._state in ("opening", "open") and not ours and self._loop is not None and self._loop.is_running():
            raise ClientClosed(f"{_ELSEWHERE}; that one still runs: close the client there")
        self._final, self.succession.down = True, None
        try:
            return await self._close()
        finally:
            self._engine.remove_files(last=True)

    async def _close(self) -> str:
        here = self._loop is not None and self._loop.is_current()
        if self._state == "opening" and self._opened is not None and here:
            await self._opened.wait()
        if self._state == "new":
            self._state = "closed"
        if self._state == "closing" and self._ended is not None and self._loop is not None:
            await self._loop.uninterrupted(self._ended.wait)
        if self._state not in ("open", "opening") or os.getpid() != self._owner[0]:  # a fork has nothing to close
            return self._rung
        assert self._loop is not None
        assert self._router is not None
        self._state = "closing"
        self._ended = anyio.Event()
        if not here:  # that loop has ended, with us open
            return await self._close_from_elsewhere()
        await self._loop.uninterrupted(self._end)
        return self._rung

    async def _end(self) -> None:
        assert self._router is not None
        router = self._router
        try:
            router.fail_all(lambda: ClientClosed("the client has been closed"))
            assert self._over is not None
            self._over.set()
            if self._dead is not None and self._engine.process is None:
                self._rung = "gone"
            else:
                self._rung = await self._engine.end(router.send, self._options.shutdown_timeout)
        finally:
            self._dispose()
            if self._ended is not None:
                self._ended.set()

    async def _close_from_elsewhere(self) -> str:
        process = self._engine.process
        if process is not None and process.running:
            await anyio.to_thread.run_sync(process.kill_and_reap)
            self._rung = "killed"
        self._dispose()
        return self._rung

    def _dispose(self) -> None:
        """Give back what is left, without waiting. In the loop's thread, or when the loop runs no more. Idempotent."""
        self._state = "closed"
        if self._finalizer is not None:
            self._finalizer()
        if self._router is not None:
            self._router.heartbeat.stop()
        if self._engine.process is not None:
            self._engine.process.dispose()
        if self._engine.transport is not None:
            self._engine.transport.flush_and_close(0.2 if self._rung == "left" else 0.0)
        self._engine.remove_files()

    def _abandoned(self) -> None:
        """The client was collected, or the interpreter exits. Any thread, any moment."""
        if os.getpid() != self._owner[0] or self._loop is None:
            return  # a forked child: nothing of this is its own
        if self._engine.process is not None:
            self._engine.process.abandon()
        self._engine.remove_files()
        if threading.get_ident() == self._owner[1] and not self._loop.is_current():
            self._dispose()  # the loop isn't running, and only this thread could run it
        elif not self._loop.soon(self._dispose):
            with contextlib.suppress(RuntimeError):
                self._dispose()


def _invalid_option(message: str) -> InvalidOption | None:
    """`field=value: allowed`, as InvalidOption prints itself, turned back into one."""
    found = re.fullmatch(r"(\w+)=(.*?): (.*)", message, re.DOTALL)
    if found is None:
        return None
    field, value, allowed = found.groups()
    with contextlib.suppress(ValueError, SyntaxError):  # not a literal: kept as it was printed
        value = ast.literal_eval(value)
    return InvalidOption(field, value, allowed)
