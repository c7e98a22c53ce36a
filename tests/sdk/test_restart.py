"""An engine that died, and the one after it: of our own, shared with others, and joined."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo
from octavo import AsyncClient
from octavo.testing import ScriptedEngine
from tests.sdk.conftest import FAKE_ENGINE, children, fake_client

pytestmark = pytest.mark.anyio
once = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what is the same on every loop


async def test_a_dead_engine_is_followed_by_another(anyio_backend: Any) -> None:
    before = children()
    async with fake_client() as client:
        first = client.ready.pid
        async with anyio.create_task_group() as group:
            group.start_soon(_kill, first)
            error = await client.died()
        assert isinstance(error, octavo.EngineDead)
        assert error.exit_code == -signal.SIGKILL
        with pytest.raises(octavo.EngineDead, match="SIGKILL"):
            await client.generate("x")
        assert await client.restart() is client
        assert client.ready.pid != first
        assert (await client.generate("words 2")).text == "w0 w1 "
        await client.restart()  # one that lives
        assert (await client.generate("words 2")).text == "w0 w1 "
    assert children() == before


async def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@once
async def test_meanwhile_requests_say_why(anyio_backend: Any) -> None:
    async with fake_client() as client:
        await _kill(client.ready.pid)
        await client.died()
        async with anyio.create_task_group() as group:
            group.start_soon(client.restart)
            await anyio.wait_all_tasks_blocked()
            for ask in (client.health, lambda: client.generate("x")):
                with pytest.raises(octavo.EngineDead, match="is being started again"):
                    await ask()
            with pytest.raises(octavo.EngineDead, match="is being started again"):
                _ = client.ready
        await client.health()


@once
async def test_a_restart_that_fails_may_be_tried_again(anyio_backend: Any) -> None:
    async with fake_client() as client:
        engine = client._session._engine
        good, engine._command = engine._command, ["/nonexistent/python"]  # type: ignore[union-attr]
        await _kill(client.ready.pid)
        await client.died()
        with pytest.raises(octavo.EngineStartError, match="can't start"):
            await client.restart()
        with pytest.raises(octavo.EngineDead, match="starting it again failed: can't start /nonexistent/python"):
            await client.generate("x")
        client._session._engine._command = good  # type: ignore[union-attr]
        await client.restart()
        assert (await client.generate("words 1")).text == "w0 "


async def test_a_cancelled_restart_leaves_no_engine_and_says_so(anyio_backend: Any) -> None:
    before = children()
    async with fake_client() as client:
        await _kill(client.ready.pid)
        await client.died()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.restart()
        assert children() == before
        with pytest.raises(octavo.EngineDead, match=r"starting it again failed: (?i:cancelled)"):
            await client.generate("x")
        await client.restart()
        assert (await client.generate("words 1")).text == "w0 "


async def test_closed_while_it_restarts(anyio_backend: Any) -> None:
    before = children()
    client = await fake_client().open()
    await _kill(client.ready.pid)
    await client.died()

    async def restart() -> None:
        with contextlib.suppress(octavo.ClientClosed):  # where closing came first
            await client.restart()

    async with anyio.create_task_group() as group:
        group.start_soon(restart)
        await anyio.wait_all_tasks_blocked()
        await client.close()
    assert children() == before
    with pytest.raises(octavo.ClientClosed):
        await client.restart()
    with pytest.raises(octavo.ClientClosed):
        await client.generate("x")


async def test_closing_ends_the_wait_for_a_death(anyio_backend: Any) -> None:
    client = fake_client()
    with pytest.raises(octavo.ClientClosed, match="not open"):
        await client.died()
    await client.open()

    async def wait() -> None:
        with pytest.raises(octavo.ClientClosed, match="has been closed"):
            await client.died()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await client.close()


async def test_those_who_joined_find_the_next_one_where_the_last_was(anyio_backend: Any) -> None:
    command = [sys.executable, str(FAKE_ENGINE)]
    async with AsyncClient("fake", share=True, _command=command) as owner:
        folder, address = Path(owner.address.removeprefix("ipc://")).parent, owner.address
        async with await AsyncClient.connect(address) as guest:
            await _kill(owner.ready.pid)
            await owner.died()
            assert isinstance(await guest.died(), octavo.EngineDead)
            async with anyio.create_task_group() as group:
                group.start_soon(guest.restart)
                await anyio.wait_all_tasks_blocked()
                await owner.restart()
            assert (owner.address, guest.ready.pid) == (address, owner.ready.pid)
            assert (await guest.generate("words 1")).text == "w0 "
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


@once
async def test_a_failed_restart_keeps_the_place_and_closing_gives_it_back(anyio_backend: Any) -> None:
    command = [sys.executable, str(FAKE_ENGINE)]
    client = await AsyncClient("fake", share=True, _command=command).open()
    address = client.address
    client._session._engine._command = ["/nonexistent/python"]  # type: ignore[union-attr]
    for _ in range(2):
        with pytest.raises(octavo.EngineStartError):
            await client.restart()
        assert client.address == address
        assert Path(address.removeprefix("ipc://")).parent.is_dir()
    await client.close()
    with pytest.raises(octavo.ClientClosed):
        await client.generate("x")
    assert not Path(address.removeprefix("ipc://")).parent.exists()


@once
async def test_joining_survives_an_engine_that_dies_while_it_loads(anyio_backend: Any, tmp_path: Path) -> None:
    """The next one at that address has never heard of us: it has to be greeted again."""
    address = f"ipc://{tmp_path}/engine.sock"
    loading = [sys.executable, str(FAKE_ENGINE), "never-ready", "--bind", address]
    began = anyio.Event()
    box: list[AsyncClient] = []

    async def join() -> None:
        box.append(await AsyncClient.connect(address, on_progress=lambda _: began.set()))

    with subprocess.Popen(loading, stderr=subprocess.DEVNULL) as first:
        async with anyio.create_task_group() as group:
            group.start_soon(join)
            await began.wait()
            first.kill()
            first.wait()
            second = subprocess.Popen([sys.executable, str(FAKE_ENGINE), "--bind", address], stderr=subprocess.DEVNULL)
    try:
        async with box[0] as client:
            assert (await client.generate("words 1")).text == "w0 "
    finally:
        second.kill()
        second.wait()


@once
async def test_adapters_are_loaded_again(anyio_backend: Any) -> None:
    engine = ScriptedEngine(default="x")
    async with engine.client() as client:
        await client.load_lora("sql", "/adapters/sql")
        await client.load_lora("gone", "/adapters/gone")
        await client.unload_lora("gone")
        engine.die()
        engine._loras.clear()
        await client.died()
        await client.restart()
        assert [(lora.name, lora.path) for lora in await client.loras()] == [("sql", "/adapters/sql")]


async def test_whoever_waits_for_another_s_opening_gets_an_open_client(anyio_backend: Any) -> None:
    """Also where the second came before the first asked anew: it was told of a closed client."""
    client = fake_client()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(client.open)
    await client.health()
    await client.close()


async def test_closing_while_another_task_opens(anyio_backend: Any) -> None:
    before = children()
    client = fake_client()
    async with anyio.create_task_group() as group:
        group.start_soon(client.open)
        await anyio.wait_all_tasks_blocked()
        assert await client.close() == "drained"
    assert children() == before


def test_another_loop_may_not_open_or_close_it_but_begins_anew_once_the_first_has_ended() -> None:
    before = children()
    client = fake_client()

    async def first() -> None:
        await client.open()
        pid = client.ready.pid

        async def stranger() -> None:
            with pytest.raises(octavo.ClientClosed, match="still runs: close the client there"):
                await client.close()
            with pytest.raises(octavo.ClientClosed, match="another one; restart"):
                await client.open()

        await anyio.to_thread.run_sync(anyio.run, stranger)
        assert (client.ready.pid, (await client.generate("words 1")).text) == (pid, "w0 ")

    async def second() -> None:
        with pytest.raises(octavo.ClientClosed, match="another one; restart"):
            await client.open()
        await client.restart()
        assert (await client.generate("words 1")).text == "w0 "
        await client.close()

    anyio.run(first)
    anyio.run(second)
    assert children() == before
