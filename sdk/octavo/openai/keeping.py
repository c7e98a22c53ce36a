"""An engine that dies is started again, a few times; then the server ends too, for who runs it to see to."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from octavo.errors import EngineDead, OctavoError

if TYPE_CHECKING:
    from octavo.client import AsyncClient

__all__ = ["WINDOW", "keep_engine", "keep_joined", "say"]

WINDOW = 600.0
"""Seconds after which a death is forgotten."""


async def keep_engine(client: AsyncClient, restarts: int) -> OctavoError:
    """Start the client's engine again whenever it has died, after 0, 1, 3, 7, ... seconds; at most `restarts` times
    within WINDOW seconds, those that fail included. Returns why it is dead for good."""
    deaths: deque[float] = deque()
    while True:
        error = await client.died()
        while True:
            began = anyio.current_time()
            while deaths and deaths[0] <= began - WINDOW:
                deaths.popleft()
            deaths.append(began)
            if len(deaths) > restarts:
                times = "" if not restarts else f" {len(deaths)} times within {WINDOW:g} s"
                return EngineDead(f"no engine any more{times} (--engine-restarts {restarts}): {error}")
            say(f"{_line(error)}; starting it again ({len(deaths)} of {restarts} times within {WINDOW:g} s)")
            await anyio.sleep((1 << min(len(deaths) - 1, 6)) - 1)
            try:
                await client.restart()
            except OctavoError as failed:
                error = failed
            else:
                say(f"the engine is ready again after {anyio.current_time() - began:.1f} s")
                break


async def keep_joined(client: AsyncClient, tell: Callable[[str], None] = lambda text: None) -> OctavoError:
    """Join the engine again whenever it has died, for as long as it takes: the process that owns it sees to it.

    tell: of each death, of what is in the way then, and that it is joined again.
    """
    while True:
        told = ""
        error = await client.died()
        while True:
            if (line := _line(error)) != told:
                tell(f"{line}; joining it again")
                told = line
            try:
                await client.restart()
            except OctavoError as failed:
                error = failed
                await anyio.sleep(1)
            else:
                tell("the engine is joined again")
                break


def _line(error: OctavoError) -> str:
    return str(error).partition("; last stderr:")[0].partition("\n")[0]


def say(text: str) -> None:
    """A line on stderr: the process is the server's own."""
    print(f"octavo: {text}", file=sys.stderr, flush=True)
