"""Clients that join an engine which somebody else runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo
from octavo import AsyncClient
from tests.sdk.conftest import FAKE_ENGINE, until

pytestmark = pytest.mark.anyio


async def test_two_clients_share_one_engine(anyio_backend: Any, shared_engine: str) -> None:
    async with await AsyncClient.connect(shared_engine) as one, await AsyncClient.connect(shared_engine) as two:
        assert one.ready.pid == two.ready.pid
        stream = one.stream("forever")
        assert (await two.generate("words 2")).text == "w0 w1 "
        await anext(stream)
        assert (await two.stats())["running"] == 0
        goodbyes = (await two.stats())["goodbyes"]
        assert await one.close() == "left"
        await until(two, goodbyes=goodbyes + 1)


async def test_connect_waits_for_an_engine_that_comes_later(anyio_backend: Any, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/late.sock"
    async with anyio.create_task_group() as group:
        box: list[AsyncClient] = []

        async def connect() -> None:
            box.append(await AsyncClient.connect(address))

        group.start_soon(connect)
        await anyio.wait_all_tasks_blocked()
        process = subprocess.Popen([sys.executable, str(FAKE_ENGINE), "--bind", address], stderr=subprocess.DEVNULL)
    try:
        async with box[0] as client:
            assert (await client.generate("here")).text == "here"
            process.kill()
            with anyio.fail_after(5), pytest.raises(octavo.EngineDead, match="closed the connection"):
                await client.generate("nothing")
            assert await client.close() == "gone"
    finally:
        process.kill()
        process.wait()


async def test_nobody_there(anyio_backend: Any, tmp_path: Path) -> None:
    with pytest.raises(octavo.EngineStartError, match=r"waited 0\.1 s .*ready_timeout of AsyncClient\.connect"):
        await AsyncClient.connect(f"ipc://{tmp_path}/nobody.sock", ready_timeout=0.1)


@pytest.mark.parametrize("address", ["http://x", "ipc://", "tcp://127.0.0.1:1", "", "/tmp/x"])
async def test_addresses_that_are_refused(anyio_backend: Any, address: str) -> None:
    with pytest.raises(octavo.InvalidOption):
        await AsyncClient.connect(address)
