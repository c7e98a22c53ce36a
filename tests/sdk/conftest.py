"""The three event loops, and clients of the fake engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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


@pytest.fixture
async def client(anyio_backend: Any) -> Any:
    async with fake_client() as client:
        yield client
