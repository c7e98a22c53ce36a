"""The three event loops, and clients of the fake engine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


def fake_client(*behaviours: str, **options: Any) -> octavo.AsyncClient:
    """A client that spawns the fake engine as it would the real one."""
    command = [sys.executable, str(FAKE_ENGINE), *behaviours]
    return octavo.AsyncClient("fake", octavo.EngineOptions(**options), _command=command)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one fake engine that the tests of requests share, each with a client of its own."""
    address = f"ipc://{tmp_path_factory.mktemp('fake')}/engine.sock"
    process = subprocess.Popen([sys.executable, str(FAKE_ENGINE), "--bind", address], stderr=subprocess.DEVNULL)
    yield address
    process.kill()
    process.wait()


@pytest.fixture
async def client(anyio_backend: Any, shared_engine: str) -> Any:
    async with await octavo.AsyncClient.connect(shared_engine) as client:
        yield client


async def until(client: octavo.AsyncClient, **wanted: float) -> dict[str, float]:
    """Ask the engine until its counters are as wanted; each answer comes from its loop, so nothing is slept for."""
    with anyio.fail_after(20):
        while True:
            stats = await client.stats()
            if all(stats[name] == value for name, value in wanted.items()):
                return stats


def children() -> set[int]:
    """The pids of this process's children, zombies included."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def fds() -> set[str]:
    """This process's open fds and what they are."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd}={os.readlink(f'/proc/self/fd/{fd}')}")
    return found
