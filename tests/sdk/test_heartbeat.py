"""Engines that are alive and hang: everything in flight fails typed, and what only takes long is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo
from octavo.heartbeat import Heartbeat
from tests.sdk.conftest import FAKE_ENGINE, fake_client, until

TIMEOUT = 0.6  # longer than other work on the machine keeps an engine from a core


# ---- the rule, on a loop of our own --------------------------------------------------------------------------------


class Ticker:
    """A loop with timers alone, fired by hand."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, Callable[[], None]]] = []

    def later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        timer = (delay, callback)
        self.armed.append(timer)
        return lambda: self.armed.remove(timer)

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            (_, callback) = self.armed.pop()
            assert not self.armed
            callback()


class Beating:
    """A heartbeat and what it did."""

    def __init__(self) -> None:
        self.loop = Ticker()
        self.did: list[str] = []
        self.look: Callable[[], None] = lambda: None
        self.heart = Heartbeat(
            self.loop,  # type: ignore[arg-type]
            8.0,
            ask=lambda: self.did.append("asked"),
            look=lambda: self.look(),
            on_silent=lambda: self.did.append("silent"),
        )

    def answer(self) -> None:
        self.heart.heard, self.heart.asked = True, False


def test_four_silent_ticks_and_one_question() -> None:
    beating = Beating()
    beating.heart.start()
    assert [delay for delay, _ in beating.loop.armed] == [2.0]
    beating.loop.tick(3)
    assert beating.did == ["asked"]
    beating.loop.tick()
    assert beating.did == ["asked", "silent"]
    assert not beating.loop.armed


def test_any_frame_is_life() -> None:
    beating = Beating()
    beating.heart.start()
    for _ in range(5):
        beating.loop.tick(3)
        beating.heart.heard = True
        beating.loop.tick()
    assert beating.did == ["asked"]
    beating.loop.tick(4)
    assert beating.did == ["asked", "silent"]


def test_each_answer_is_followed_by_the_next_question() -> None:
    beating = Beating()
    beating.heart.start()
    for _ in range(20):
        beating.loop.tick()
        beating.answer()
    assert beating.did == ["asked"] * 20


def test_what_lies_unread_when_a_busy_loop_gets_to_it_counts() -> None:
    beating = Beating()
    beating.heart.start()
    beating.loop.tick(3)
    beating.look = beating.answer
    beating.loop.tick(10)
    assert "silent" not in beating.did


def test_the_end_of_all_may_be_what_lay_unread() -> None:
    beating = Beating()
    beating.heart.start()
    beating.look = beating.heart.stop
    beating.loop.tick()
    assert not beating.loop.armed
    assert beating.did == []


def test_a_new_start_has_the_whole_timeout() -> None:
    beating = Beating()
    for _ in range(5):
        beating.heart.start()
        beating.heart.start()
        assert len(beating.loop.armed) == 1
        beating.loop.tick(3)
        beating.heart.stop()
        beating.heart.stop()
        assert not beating.loop.armed
    assert beating.did == ["asked"]  # still the same one, still unanswered


# ---- through a client ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_stopped_engine_fails_all_and_may_come_back(anyio_backend: Any) -> None:
    errors: list[octavo.EngineUnresponsive] = []

    async def failing(call: Callable[[], Any]) -> None:
        try:
            await call()
        except octavo.EngineUnresponsive as error:
            errors.append(error)

    async with fake_client(heartbeat_timeout=TIMEOUT) as client:

        async def read() -> None:
            async for _ in client.stream("forever"):
                pass

        pid = client.ready.pid
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(failing, read)
            group.start_soon(failing, lambda: client.generate("nothing"))
            before = await until(client, running=21)
            os.kill(pid, signal.SIGSTOP)
            group.start_soon(failing, lambda: client.stats(timeout=60.0))
            group.cancel_scope.deadline = anyio.current_time() + 10
        assert len(errors) == len({id(error) for error in errors}) == 22
        for part in (f"pid {pid}", f"for {TIMEOUT} s", "EngineOptions.heartbeat_timeout", "the fake engine is up"):
            assert all(part in str(error) for error in errors)
        assert client._session.router.num_requests == 0
        with pytest.raises(octavo.EngineUnresponsive):  # each call has its own chance
            await client.generate("here")
        os.kill(pid, signal.SIGCONT)
        assert (await client.generate("words 2")).text == "w0 w1 "
        stats = await until(client, running=0)
        assert stats["aborted"] == 21
        # One was outstanding all the time, or there were eight; more are asked since the engine answers again.
        assert 1 <= stats["heartbeats"] - before["heartbeats"] <= 4
    assert await client.close() == "drained"


@pytest.mark.anyio
async def test_an_engine_that_only_takes_long_is_left_alone(anyio_backend: Any) -> None:
    async with fake_client(heartbeat_timeout=TIMEOUT) as client:
        # It ends at the sixth heartbeat, one and a half timeouts later, and nothing else comes until then.
        assert (await client.generate("heartbeats 6")).finish_reason == "stop"
        assert (await client.stats())["heartbeats"] >= 6


@pytest.mark.anyio
async def test_a_hung_engine_goes_down_the_ladder(anyio_backend: Any) -> None:
    client = fake_client(heartbeat_timeout=TIMEOUT, shutdown_timeout=0.2)
    async with client:
        os.kill(client.ready.pid, signal.SIGSTOP)
        with pytest.raises(octavo.EngineUnresponsive):
            await client.generate("x")
        stream = client.stream("x")
    assert await client.close() == "killed"
    with pytest.raises(octavo.ClientClosed):
        await anext(stream)


@pytest.mark.anyio
async def test_a_joined_engine(anyio_backend: Any, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/engine.sock"
    process = subprocess.Popen([sys.executable, str(FAKE_ENGINE), "--bind", address], stderr=subprocess.DEVNULL)
    try:
        client = await octavo.AsyncClient.connect(address, heartbeat_timeout=TIMEOUT)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(octavo.EngineUnresponsive, match=r"heartbeat_timeout of AsyncClient\.connect"):
            await client.generate("x")
        process.send_signal(signal.SIGCONT)
        assert (await client.generate("x")).text == "x"
        assert await client.close() == "left"
    finally:
        process.kill()
        process.wait()


@pytest.mark.anyio
async def test_no_timer_while_idle(client: octavo.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    router = client._session.router
    armed: set[object] = set()
    later = router.loop.later

    def recording(delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        timer = object()

        def fired() -> None:
            armed.discard(timer)
            callback()

        def cancelled() -> None:
            armed.discard(timer)
            cancel()

        armed.add(timer)
        cancel = later(delay, fired)
        return cancelled

    assert router.heartbeat._cancel is None
    monkeypatch.setattr(router.loop, "later", recording)
    one, two = client.stream("forever"), client.stream("forever")
    assert len(armed) == 1
    await one.aclose()
    assert len(armed) == 1
    await two.aclose()
    assert not armed

    await client.generate("words 2")
    assert not armed
    await client.stats()
    assert not armed
    with pytest.raises(octavo.InvalidRequest):
        client.stream("\ud800")
    assert not armed
    with pytest.raises(octavo.RequestFailed):
        await client.generate("fail failed")
    assert not armed
    for call in (lambda: client.generate("nothing"), lambda: anext(client.stream("nothing"))):
        with anyio.move_on_after(0.01):
            await call()
        assert not armed
    stream = client.stream("forever")
    assert len(armed) == 1
    del stream
    await client.stats()
    assert not armed
    stream = client.stream("forever")
    assert len(armed) == 1
    await client.close()
    assert not armed
    with pytest.raises(octavo.ClientClosed):
        [delta async for delta in stream]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ends_with_a_timer_armed(backend: str) -> None:
    client = fake_client()
    streams = []

    async def leave() -> None:
        await client.open()
        streams.append(client.stream("forever"))

    async def close() -> str:
        return await client.close()

    anyio.run(leave, backend=backend)
    assert asyncio.run(close()) == "killed"
    assert client._session._router is not None
    assert client._session._router.heartbeat._cancel is None


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), float("inf"), True, "5"])
async def test_the_option_is_checked(anyio_backend: Any, wrong: Any) -> None:
    with pytest.raises(octavo.InvalidOption, match="heartbeat_timeout"):
        octavo.EngineOptions(heartbeat_timeout=wrong)
    with pytest.raises(octavo.InvalidOption, match="heartbeat_timeout"):
        await octavo.AsyncClient.connect("ipc:///nobody", heartbeat_timeout=wrong)
