"""Opening, closing and dying, through a real child process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo
from octavo import process as process_module
from tests.sdk.conftest import children, fake_client, until

pytestmark = pytest.mark.anyio


def engine_pid(client: octavo.AsyncClient) -> int:
    return client.ready.pid


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_open_and_close(anyio_backend: Any) -> None:
    client = fake_client(max_num_seqs=4)
    assert client.options.max_num_seqs == 4
    with pytest.raises(octavo.ClientClosed, match="not been opened"):
        _ = client.ready
    with pytest.raises(octavo.ClientClosed, match="not open yet"):
        client.stream("x")
    assert await client.open() is client
    await client.open()
    assert client.ready.architecture == "Fake"
    assert client.options.max_model_len == 2048
    pid = engine_pid(client)
    assert await client.close() == "drained"
    assert gone(pid)
    assert await client.close() == "drained"
    with pytest.raises(octavo.ClientClosed, match="has been closed"):
        await client.generate("x")
    with pytest.raises(octavo.ClientClosed):
        await client.open()
    assert await fake_client().close() == "gone"


@pytest.mark.parametrize(
    ("behaviours", "rung"),
    [((), "drained"), (("ignore-drain",), "terminated"), (("ignore-drain", "ignore-sigterm"), "killed")],
)
async def test_the_ladder(anyio_backend: Any, behaviours: tuple[str, ...], rung: str) -> None:
    client = fake_client(*behaviours, shutdown_timeout={"drained": 20.0, "terminated": 1.0, "killed": 0.2}[rung])
    async with client:
        pid = engine_pid(client)
        stream = client.stream("forever")
    assert await client.close() == rung
    assert gone(pid)
    with pytest.raises(octavo.ClientClosed):
        [delta async for delta in stream]


async def test_a_stopped_engine_fails_its_health_check_and_is_killed(anyio_backend: Any) -> None:
    client = fake_client(shutdown_timeout=0.2)
    async with client:
        await client.health()
        os.kill(engine_pid(client), signal.SIGSTOP)
        with pytest.raises(octavo.EngineUnresponsive, match=r"timeout=0\.1 s"):
            await client.health(timeout=0.1)
    assert await client.close() == "killed"


async def test_a_cancelled_close_still_reaps(anyio_backend: Any) -> None:
    client = fake_client("ignore-drain", shutdown_timeout=0.2)
    await client.open()
    pid = engine_pid(client)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await client.close()
    assert gone(pid)


async def test_two_closers_both_wait(anyio_backend: Any) -> None:
    client = fake_client("ignore-drain", shutdown_timeout=1.0)
    await client.open()
    pid = engine_pid(client)
    rungs = []

    async def close() -> None:
        rungs.append(await client.close())
        assert gone(pid)

    async with anyio.create_task_group() as group:
        group.start_soon(close)
        group.start_soon(close)
    assert rungs == ["terminated", "terminated"]


async def test_opened_in_one_task_and_closed_in_another(anyio_backend: Any) -> None:
    client = fake_client()
    async with anyio.create_task_group() as group:
        group.start_soon(client.open)
    assert (await client.generate("words 2")).text == "w0 w1 "
    async with anyio.create_task_group() as group:
        group.start_soon(client.close)
    assert gone(engine_pid(client))


# ---- starts that fail ----------------------------------------------------------------------------------------------


async def test_an_engine_that_dies_at_start(anyio_backend: Any) -> None:
    with pytest.raises(octavo.EngineStartError, match="exited with status 3 before it was ready") as caught:
        await fake_client("die-at-start").open()
    assert type(caught.value) is octavo.EngineStartError
    assert caught.value.exit_code == 3
    assert "ImportError: no such kernel" in caught.value.stderr_tail
    assert "ImportError: no such kernel" in str(caught.value)


async def test_an_engine_that_never_becomes_ready(anyio_backend: Any) -> None:
    before = children()

    async def opening(behaviour: str) -> None:
        with pytest.raises(octavo.EngineStartError, match=r"waited 3 s .*raise EngineOptions\.ready_timeout") as caught:
            await fake_client(behaviour, ready_timeout=3.0).open()
        assert ("load weights" in str(caught.value)) == (behaviour == "never-ready")
        assert "the fake engine is up" in caught.value.stderr_tail

    async with anyio.create_task_group() as group:
        for behaviour in ("never-ready", "hang-at-start"):
            group.start_soon(opening, behaviour)
    assert children() == before


@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        ("garbage", octavo.ProtocolMismatch, "can't be read"),
        ("old-protocol", octavo.ProtocolMismatch, "speaks protocol 999, this client"),
        ("dying-protocol", octavo.ProtocolMismatch, "as asked: protocol"),
        ("dying-model", octavo.ModelError, "as asked: model"),
        ("dying-start_failed", octavo.EngineStartError, "as asked: start_failed"),
        ("dying-invalid_option", octavo.InvalidOption, "the model has positions for 2048 tokens"),
    ],
)
async def test_starts_that_fail_are_typed(anyio_backend: Any, behaviour: str, kind: type[Exception], text: str) -> None:
    before = children()
    with pytest.raises(kind, match=text) as caught:
        await fake_client(behaviour).open()
    assert type(caught.value) is kind
    assert children() == before
    if isinstance(caught.value, octavo.InvalidOption):
        assert (caught.value.field, caught.value.value) == ("max_model_len", 5000)
    if isinstance(caught.value, octavo.ModelError):
        assert caught.value.exit_code == 1


async def test_a_command_that_is_not_there(anyio_backend: Any) -> None:
    with pytest.raises(octavo.EngineStartError, match="no-such-python"):
        await octavo.AsyncClient("m", _command=["/no-such-python"]).open()


async def test_without_the_engine_extra(anyio_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module.importlib.util, "find_spec", lambda name: None if name == "torch" else 1)
    with pytest.raises(octavo.EngineNotInstalled, match=r'pip install "octavo\[engine\]"'):
        await octavo.AsyncClient("m").open()


async def test_a_cancelled_open_leaves_nothing(anyio_backend: Any) -> None:
    before = children()
    with anyio.move_on_after(0.3):
        await fake_client("never-ready").open()
    assert children() == before


async def test_progress_is_told(anyio_backend: Any) -> None:
    seen: list[octavo.Progress] = []
    client = fake_client()
    client._session.on_progress = seen.append
    async with client:
        pass
    assert seen[0] == octavo.Progress("load", 1, 2, "weights")


async def test_an_error_in_on_progress_is_the_openers(anyio_backend: Any) -> None:
    def bad(progress: octavo.Progress) -> None:
        raise KeyError(progress.stage)

    client = fake_client()
    client._session.on_progress = bad
    before = children()
    with pytest.raises(KeyError, match="load"):
        await client.open()
    assert children() == before


def test_the_model_is_named_once() -> None:
    with pytest.raises(octavo.InvalidOption, match="model"):
        octavo.AsyncClient("a", octavo.EngineOptions(model="b"))
    with pytest.raises(octavo.InvalidOption, match="model"):
        octavo.AsyncClient()
    assert octavo.AsyncClient(Path("a"), octavo.EngineOptions(model="a")).options.model == "a"
    assert octavo.AsyncClient(options=octavo.EngineOptions(model="b")).options.model == "b"


# ---- deaths --------------------------------------------------------------------------------------------------------


@pytest.mark.alone
async def test_sigkill_under_fifty_streams(anyio_backend: Any) -> None:
    errors: list[octavo.EngineDead] = []

    async def read(client: octavo.AsyncClient) -> None:
        try:
            async for _ in client.stream("forever"):
                pass
        except octavo.EngineDead as error:
            errors.append(error)

    async with fake_client() as client:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(read, client)
            await until(client, running=50)
            os.kill(engine_pid(client), signal.SIGKILL)
            group.cancel_scope.deadline = anyio.current_time() + 1.0  # the promise
        assert len(errors) == 50
        assert len({id(error) for error in errors}) == 50
        assert {error.exit_code for error in errors} == {-signal.SIGKILL}
        assert all("killed by SIGKILL" in str(error) for error in errors)
        assert all("the fake engine is up" in error.stderr_tail for error in errors)
        for call in (client.generate("x"), client.stats(), client.health()):
            with pytest.raises(octavo.EngineDead):
                await call
        with pytest.raises(octavo.EngineDead):
            client.stream("x")
        assert await client.close() == "gone"


async def test_what_came_before_the_death_is_kept(anyio_backend: Any) -> None:
    async with fake_client() as client:
        first = client.stream("words 3")
        await client.stats()
        with pytest.raises(octavo.EngineDead, match="exited with status 7") as caught:
            await client.generate("die 7")
        assert caught.value.exit_code == 7
        assert "dying as asked" in caught.value.stderr_tail
        assert "".join([delta.text async for delta in first]) == "w0 w1 w2 "


async def test_an_announced_death(anyio_backend: Any) -> None:
    async with fake_client() as client:
        with pytest.raises(octavo.EngineDead, match=r"IndexError: as asked .*exited with status 1"):
            await client.generate("dying")


async def test_a_lost_device(anyio_backend: Any) -> None:
    async with fake_client() as client:
        with pytest.raises(octavo.DeviceLost, match="as asked"):
            await client.generate("dying device_lost")


async def test_garbage_fails_everything(anyio_backend: Any) -> None:
    async with fake_client() as client:
        stream = client.stream("nothing")
        with pytest.raises(octavo.ProtocolMismatch, match="frame of 3 bytes"):
            await client.generate("garbage")
        with pytest.raises(octavo.ProtocolMismatch):
            await anext(stream)


async def test_the_engines_words_go_to_its_logger(anyio_backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo.engine")
    async with fake_client():
        pass
    records = {(record.name, record.levelname, record.getMessage()) for record in caplog.records}
    assert ("octavo.engine", "WARNING", "the fake engine is up") in records
    assert ("octavo.engine", "INFO", "a bare print") in records


# ---- asyncio's own cancellation ------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_task_cancel_during_close_still_reaps() -> None:
    client = fake_client("ignore-drain", shutdown_timeout=0.3)
    await client.open()
    pid = engine_pid(client)
    task = asyncio.ensure_future(client.close())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)


@pytest.mark.asyncio
async def test_asyncio_timeout_around_everything() -> None:
    before = children()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await fake_client("never-ready").open()
    assert children() == before


def test_a_client_left_open_by_a_finished_loop_can_be_closed_from_the_next() -> None:
    client = fake_client()
    asyncio.run(client.open())  # type: ignore[arg-type]
    pid = engine_pid(client)

    async def use() -> None:
        with pytest.raises(octavo.ClientClosed, match="event loop that opened it"):
            await client.generate("x")
        assert await client.close() == "killed"

    asyncio.run(use())
    assert gone(pid)
    assert sys.exc_info() == (None, None, None)
