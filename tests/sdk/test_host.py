"""The host is left alone: signals, logging, environment, fds, threads, children, stdout and stderr."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import octavo
from tests.sdk.conftest import children, fake_client, fds


def logging_tree() -> dict[str, Any]:
    loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
    return {
        name: (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and not name.startswith("octavo") and logger.handlers
    }


def host_state() -> dict[str, Any]:
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "logging": logging_tree(),
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": (os.umask(0o22), os.umask(0o22))[1],
        "excepthook": (sys.excepthook, sys.unraisablehook, threading.excepthook),
    }


@pytest.mark.anyio
async def test_nothing_of_the_host_changes(anyio_backend: Any, capfd: pytest.CaptureFixture[str]) -> None:
    before = host_state()
    async with fake_client() as client:
        await client.generate("words 3")
        assert host_state() == before
    assert host_state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.anyio
async def test_fds_and_children_return_to_the_baseline(anyio_backend: Any) -> None:
    async with fake_client():
        pass
    baseline = fds(), children(), threading.active_count()
    for _ in range(3):
        async with fake_client() as client:
            await client.generate("words 3")
            async for _ in client.stream("forever"):
                break
    assert (fds(), children(), threading.active_count()) == baseline


@pytest.mark.slow
def test_twenty_cycles() -> None:
    async def cycle() -> None:
        async with fake_client() as client:
            await client.generate("words 3")

    asyncio.run(cycle())
    baseline = fds(), children()
    for _ in range(20):
        asyncio.run(cycle())
    assert (fds(), children()) == baseline


@pytest.mark.anyio
async def test_the_socket_folder_is_private_and_gone_once_ready(anyio_backend: Any) -> None:
    seen: list[tuple[Path, int]] = []
    client = fake_client()

    def look(progress: octavo.Progress) -> None:  # called while loading
        folder = client._session._engine._folder  # type: ignore[union-attr]
        assert folder is not None
        seen.append((folder, folder.stat().st_mode & 0o777))

    client._session.on_progress = look
    async with client:
        folder, mode = seen[0]
        assert mode == 0o700
        assert len(os.fsencode(folder / "engine.sock")) < 107
        assert not folder.exists()  # so that not even SIGKILL leaves it behind
        assert (await client.generate("words 1")).text == "w0 "
    assert await client.close() == "drained"


def test_off_the_main_thread() -> None:
    results: list[Any] = []

    async def main() -> None:
        async with fake_client() as client:
            results.append((await client.generate("words 2")).text)

    for backend in ("asyncio", "trio"):
        thread = threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": backend})
        thread.start()
        thread.join()
    assert results == ["w0 w1 "] * 2


@pytest.mark.anyio
async def test_another_threads_loop_is_refused(client: octavo.AsyncClient) -> None:
    def elsewhere() -> None:
        async def main() -> None:
            with pytest.raises(octavo.ClientClosed, match="another one"):
                await client.generate("x")

        asyncio.run(main())

    await anyio.to_thread.run_sync(elsewhere)
    assert (await client.generate("words 1")).text == "w0 "


@pytest.mark.anyio
async def test_the_loop_is_never_held_up(client: octavo.AsyncClient) -> None:
    """Counted, not timed: between two frames' worth of work other tasks get their turn."""
    turns = 0
    done = False

    async def probe() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(probe)
        stream = client.stream("words 20000")
        tokens = 0
        async for delta in stream:
            tokens += len(delta.token_ids)
        done = True
    assert tokens == 20_000
    assert turns > 20


@pytest.mark.anyio
async def test_a_fork_can_do_nothing_to_our_engine(anyio_backend: Any) -> None:
    async with fake_client() as client:
        pid = os.fork()
        if pid == 0:
            try:
                client.stream("x")
            except octavo.ClientClosed as error:
                os._exit(42 if "fork" in str(error) else 1)
            os._exit(2)
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 42
        assert (await client.generate("words 1")).text == "w0 "
