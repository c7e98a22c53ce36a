"""The engine as a child process: spawn, stderr to the log, exit watch, shutdown ladder.

The child is watched through a pidfd, not through SIGCHLD, so that the host's signal handling and child watchers are
left alone and any thread's loop will do. It dies with us because it watches a pipe whose write end only we have.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import msgspec

from octavo import wire
from octavo.errors import EngineNotInstalled, EngineStartError, InvalidOption
from octavo.loop import Loop
from octavo.options import EngineOptions

__all__ = ["EngineProcess", "engine_command", "private_folder"]

log = logging.getLogger("octavo.engine")

_TAIL_LINES = 50
_LINE_BYTES = 16 << 10
# Reads of 64 KiB at the end: what a pipe can hold, and no endless stream of a grandchild.
_TAIL_READS = 20
# Seconds after the exit in which the last stderr lines and frames may still arrive.
_GRACE = 0.05
_LEVELS = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
_REQUIRED = ("octavo_engine", "torch", "transformers", "safetensors", "tokenizers", "tvm_ffi")
_processes: weakref.WeakSet[EngineProcess] = weakref.WeakSet()


def engine_command(options: EngineOptions) -> list[str]:
    """The command line of an engine, less what only the spawner knows. Raises EngineNotInstalled."""
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineNotInstalled(
            f'the engine needs {", ".join(missing)}, not installed for {sys.executable}: pip install "octavo[engine]"'
        )
    if not sys.executable or getattr(sys, "frozen", False):  # frozen: it would start the application once more
        raise EngineStartError(
            f"sys.executable={sys.executable!r} is no Python (a frozen application?): octavo can't tell what to start "
            "the engine with; run `octavo engine` by itself and join it with AsyncClient.connect"
        )
    # -P: a module in the host's working directory must not shadow the engine's imports.
    command = [sys.executable, "-P", "-m", "octavo_engine", "--options", _encoded(options)]
    if options.logits_processors:  # found where the host would find them
        command += ["--import-path", os.pathsep.join(path or _folder() or "/" for path in sys.path)]
    return command


def _encoded(options: EngineOptions) -> str:
    """As JSON, in ASCII: that is what a command line can hold in every locale. Raises InvalidOption."""
    for name in options.__struct_fields__:
        try:
            msgspec.json.encode(getattr(options, name), enc_hook=wire.plain)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidOption(name, getattr(options, name), f"what JSON can hold: {error}") from None
    plain = msgspec.to_builtins(options, enc_hook=wire.plain)
    return json.dumps(plain, separators=(",", ":"))


def _folder() -> str | None:
    """The working directory, if it still exists."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def private_folder() -> Path:
    """A new folder of mode 0700, with a path short enough for a Unix socket in it (107 bytes, unix(7))."""
    tried = []
    for base in (os.environ.get("XDG_RUNTIME_DIR"), _temporary(), "/tmp"):
        if base and len(os.fsencode(base)) <= 70:
            try:
                return Path(tempfile.mkdtemp(prefix="octavo-", dir=base))
            except OSError as error:
                tried.append(str(error))
    raise EngineStartError(
        "no writable folder for the engine's socket: set XDG_RUNTIME_DIR or TMPDIR to a short path; "
        f"tried: {', '.join(tried)}"
    )


def _temporary() -> str | None:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # none that can be written to
        return None


class EngineProcess:
    """A child process, from its spawning to its reaping.

    `exited` is set as soon as it was reaped; on_dead is called a moment later, when its last words have been read.
    exit_code: negative for a signal, None while it runs or where somebody else in this process reaped it.
    """

    def __init__(self, command: Sequence[str], loop: Loop, on_dead: Callable[[], None]) -> None:
        self.exited = anyio.Event()
        self.exit_code: int | None = None
        self.running = True
        self._loop = loop
        self._on_dead = on_dead
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._partial = b""
        self._cancel_last_words: Callable[[], None] = lambda: None
        parent_end, self._lifeline = _pipe()
        _processes.add(self)  # before the spawn: a fork in another thread must not copy the lifeline for good
        try:
            self._stderr, stderr_end = _pipe()
        except EngineStartError:
            os.close(parent_end)
            self._cut_lifeline()
            raise
        os.set_blocking(self._stderr, False)
        try:
            child = subprocess.Popen(
                [*command, "--parent-fd", str(parent_end)],
                stdin=subprocess.DEVNULL,
                stdout=stderr_end,
                stderr=stderr_end,
                pass_fds=(parent_end,),
                # A daemon may outlive its folder (a release that was replaced); what torch loads does not start there.
                cwd=None if _folder() else "/",
            )
            self.pid = child.pid
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                child.kill()
                child.wait()
                raise
            # We reap through the pidfd. Popen must not wait for this pid (or warn about it) when it is collected.
            child.returncode = 0
        except OSError as error:
            self.running = False
            os.close(self._stderr)
            self._cut_lifeline()
            raise EngineStartError(f"can't start {command[0]}: {error}") from error
        finally:
            os.close(parent_end)
            os.close(stderr_end)
        loop.watch(self._pidfd, self._on_exit)
        loop.watch(self._stderr, self._read_stderr)

    @property
    def stderr_tail(self) -> str:
        """The last lines that it wrote to stderr or stdout."""
        return "\n".join(self._tail)

    def describe_exit(self) -> str:
        """How it ended, for an error's message."""
        code = self.exit_code
        if code is None:
            how = "is still running" if self.running else "ended (its exit code was collected by someone else)"
        elif code < 0:
            with contextlib.suppress(ValueError):
                return f"the engine (pid {self.pid}) was killed by {signal.Signals(-code).name}"
            how = f"was killed by signal {-code}"
        else:
            how = f"exited with status {code}"
        return f"the engine (pid {self.pid}) {how}"

    # ---- watching --------------------------------------------------------------------------------------------------

    def _on_exit(self) -> None:
        if not self.running:
            return
        self.running = False
        self._loop.unwatch(self._pidfd)
        self.exit_code = _reap(self._pidfd)
        os.close(self._pidfd)
        self._cut_lifeline()
        self.exited.set()
        self._cancel_last_words = self._loop.later(_GRACE, self._last_words)

    def _last_words(self) -> None:
        self.close_stderr()
        self._on_dead()

    def close_stderr(self) -> None:
        """Read what is there and stop listening; a grandchild may hold the other end for ever. Idempotent."""
        for _ in range(_TAIL_READS):
            if self._stderr < 0 or not self._read_stderr():
                break
        if self._stderr >= 0:
            self._loop.unwatch(self._stderr)
            os.close(self._stderr)
            self._stderr = -1
        if self._partial:
            self._line(self._partial)
            self._partial = b""

    def _read_stderr(self) -> bool:
        """One read; False if there was nothing more to read."""
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._loop.unwatch(self._stderr)
            os.close(self._stderr)
            self._stderr = -1
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_BYTES:  # a line without an end must not grow without one
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._line(line)
        return True

    def _line(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "replace").rstrip("\r")
        if not text.strip():
            return
        self._tail.append(text)
        # The engine prefixes its records with their level; everything else is somebody's bare print.
        record = re.match(r"([A-Z]+) \S+: (.*)", text)
        if record is not None and record[1] in _LEVELS:
            log.log(_LEVELS[record[1]], "%s", record[2])
        else:
            log.info("%s", text)

    # ---- ending ----------------------------------------------------------------------------------------------------

    async def end(self, drain: Callable[[], None], timeout: float) -> str:
        """Ask, then SIGTERM, then SIGKILL; the rung that did it: "gone", "drained", "terminated" or "killed".

        Half of timeout (seconds) is for the drain, the other half for SIGTERM. Returns after the process was reaped.
        """
        if not self.running:
            return "gone"
        drain()
        if await self._wait(timeout / 2):
            return "drained"
        self.signal(signal.SIGTERM)
        if await self._wait(timeout / 2):
            return "terminated"
        return await self.kill()

    async def kill(self) -> str:
        """SIGKILL, and wait until it was reaped."""
        if not self.running:
            return "gone"
        self.signal(signal.SIGKILL)
        await self.exited.wait()
        return "killed"

    async def _wait(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self.exited.wait()
        return self.exited.is_set()

    def signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def abandon(self) -> None:
        """Nobody will close us: let it die by the lifeline. From any thread, even in a finaliser."""
        self._cut_lifeline()

    def kill_and_reap(self) -> None:
        """Blocking: for a thread, when the loop that watched the process is gone."""
        self.signal(signal.SIGKILL)
        self.running = False
        self.exit_code = _reap(self._pidfd)
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)

    def dispose(self) -> None:
        """Give everything back without waiting; a process that still runs dies now and is reaped in a thread."""
        self._cut_lifeline()
        self._cancel_last_words()
        self.close_stderr()
        if self.running:
            self.running = False
            self._loop.unwatch(self._pidfd)
            reaper = threading.Thread(target=_reap_and_close, args=(self._pidfd,), name="octavo-reap", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is exiting: our parent will reap it
                reaper.start()

    def _cut_lifeline(self) -> None:
        fd, self._lifeline = self._lifeline, -1
        if fd >= 0:
            os.close(fd)


def _pipe() -> tuple[int, int]:
    """A pipe clear of fds 0 to 2, which a host may have closed: the child's own stdin and stderr would cover it."""
    try:
        ends = os.pipe()
    except OSError as error:
        raise EngineStartError(f"can't start an engine: {error}") from error
    if min(ends) > 2:
        return ends
    clear = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends]
    for end in ends:
        os.close(end)
    return clear[0], clear[1]


def _reap(pidfd: int) -> int | None:
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:  # the host ignores SIGCHLD or waits for every child itself
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _reap_and_close(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    _reap(pidfd)
    os.close(pidfd)


def _after_fork_in_child() -> None:
    # A forked child of the host would keep the engine alive after the host's death.
    for process in list(_processes):
        process._cut_lifeline()


os.register_at_fork(after_in_child=_after_fork_in_child)
