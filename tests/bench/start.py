"""Start and idle: import time, client open to first token, CPU while nothing runs.    python -m tests.bench.start

Prints each figure with the project's aim beside it. Run with a warm page cache: the first round is thrown away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

from octavo import AsyncClient, SamplingParams
from tests.support.checkpoints import real_model

ROUNDS = 5
IDLE_SECONDS = 10.0


def import_seconds(statement: str) -> float:
    """Median wall time of a fresh interpreter that runs `statement`."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - start

    once()
    return median(once() for _ in range(ROUNDS))


FIRST_TOKEN = """
import asyncio, sys, time
start = time.perf_counter()
from octavo import AsyncClient, SamplingParams
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        ready = time.perf_counter()
        async for _ in client.stream("The sea is", SamplingParams(temperature=0, max_tokens=1)):
            print(ready - start, time.perf_counter() - start)
asyncio.run(main())
"""


def first_token_seconds(model: str) -> tuple[float, float]:
    """(open to Ready, open to first token) in a fresh process, medians; the import of octavo included."""

    def once() -> tuple[float, float]:
        done = subprocess.run([sys.executable, "-c", FIRST_TOKEN, model], check=True, capture_output=True, text=True)
        ready, token = done.stdout.split()
        return float(ready), float(token)

    once()
    rounds = [once() for _ in range(ROUNDS)]
    return median(r for r, _ in rounds), median(t for _, t in rounds)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def idle_share(model: str) -> tuple[float, float]:
    """Shares of one core that the idle engine and the idle client use, after having served one request."""
    import anyio

    async with AsyncClient(model) as client:
        await client.generate("Hello", SamplingParams(max_tokens=4))
        await anyio.sleep(1)
        pids = client.ready.pid, os.getpid()
        before = [cpu_seconds(pid) for pid in pids]
        await anyio.sleep(IDLE_SECONDS)
        engine, host = ((cpu_seconds(pid) - b) / IDLE_SECONDS for pid, b in zip(pids, before, strict=True))
        return engine, host


def main() -> None:
    import anyio

    model = str(real_model())
    bare, octavo = import_seconds("pass"), import_seconds("import octavo")
    over = (octavo - bare) * 1000
    print(f"import octavo           {over:7.1f} ms over a bare interpreter's {bare * 1000:.1f} (aim 100)")
    ready, token = first_token_seconds(model)
    print(f"open to Ready           {ready:7.2f} s")
    print(f"open to first token     {token:7.2f} s (aim 3)")
    engine, host = anyio.run(idle_share, model)
    print(f"idle engine, {IDLE_SECONDS:.0f} s       {engine:7.2%} of a core (aim 0.5 %)")
    print(f"idle client, {IDLE_SECONDS:.0f} s       {host:7.2%} of a core (aim 0.5 %)")


if __name__ == "__main__":
    main()
