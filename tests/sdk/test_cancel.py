"""Cancellation at every place where a call can wait."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest

import octavo
from octavo.testing import Reply, ScriptedEngine
from tests.sdk.conftest import children, fake_client

pytestmark = pytest.mark.anyio


@types.coroutine
def cancelled_at(awaitable: Awaitable[Any], number: int, cancel: Callable[[], None]) -> Generator[Any, Any, bool]:
    """Run it, cancelling just before its `number`th wait; False if it ended before."""
    steps = awaitable.__await__()
    waits = 0
    send: Callable[[], Any] = lambda: next(steps)  # noqa: E731
    while True:
        try:
            trap = send()
        except StopIteration:
            return waits > number
        if waits == number:
            cancel()
        waits += 1
        try:
            value = yield trap
        except BaseException as error:
            send = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            send = lambda value=value: steps.send(value)  # type: ignore[misc]  # noqa: E731


async def at_every_wait(call: Callable[[], Awaitable[Any]], check: Callable[[], Any]) -> int:
    for number in range(100):
        reached = True
        with anyio.CancelScope() as scope:
            reached = await cancelled_at(call(), number, scope.cancel)  # type: ignore[misc]
        check()
        if not reached:
            return number
    raise AssertionError("it never ended")


async def test_requests(anyio_backend: Any) -> None:
    engine = ScriptedEngine({"slow": Reply("a b c d", delay=0.002)})
    async with engine.client() as client:

        async def generate() -> None:
            await client.generate("slow")

        async def stream() -> None:
            async for _ in client.stream("slow"):
                await anyio.lowlevel.checkpoint()

        def check() -> None:
            assert not client._session.router.num_requests or engine._running

        for call in (generate, stream):
            assert await at_every_wait(call, check) >= 1
        await client.stats()
        assert client._session.router.num_requests == 0
        assert not engine._running
        assert engine.aborted


async def test_open_and_close(anyio_backend: Any) -> None:
    before = children()

    async def whole() -> None:
        async with fake_client() as client:
            await client.generate("words 2")

    def check() -> None:
        assert children() == before

    assert await at_every_wait(whole, check) >= 2


async def test_what_was_not_read_to_its_end_is_no_answer() -> None:
    """Neither a vector of nothing nor a continuation that is certain."""
    engine = ScriptedEngine(default=Reply("x", delay=20))
    async with engine.client() as client:

        async def ended(ask: Callable[[], Awaitable[Any]]) -> None:
            with pytest.raises(octavo.RequestFailed, match="aborted before its prompt had been read"):
                await ask()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ended, lambda: client.embed("hello"))
            tasks.start_soon(ended, lambda: client.score([1, 2], [[3]]))
            while len(engine.requests) < 2:
                await anyio.sleep(0.01)
            await client.abort()
