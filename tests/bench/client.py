"""`python -m tests.bench.client`: what one delta costs the client, from the socket into `async for`.

A peer process speaks the wire over a real ipc socket and sends one frame a step with a delta for each of 256 streams,
at a fixed rate; the client's CPU time over the run gives us a delta, and its inverse what one core could take. A delta
that was merged with its neighbour still counts once a token, and the share of merged ones is printed: it tells that
the reader fell behind.

A second table tells how long the host's loop is held up: a task that sleeps 1 ms at a time records how late it wakes,
with the loop otherwise idle, under the 256 streams, and under them while prompts of 5 MB are sent.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import zmq

import octavo
from octavo import wire
from octavo.options import EngineOptions

__all__ = ["main"]

_LOOPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("asyncio", "asyncio", {"use_uvloop": False}),
    ("uvloop", "asyncio", {"use_uvloop": True}),
    ("trio", "trio", {}),
)
_PROMPT = "hello " * (5_000_000 // 6)
_PROMPTS = 10


def serve(address: str, streams: int, steps: int, rate: float) -> None:
    """The peer: when all streams have come, `steps` frames at `rate` deltas a second, then the end of all."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.sndhwm = socket.rcvhwm = 0
    socket.bind(address)
    ids: list[int] = []
    ready = wire.Ready(wire.PROTOCOL_VERSION, os.getpid(), "0", EngineOptions(model="m"), "P", True, True, 1, 1, ())
    while True:
        client, frame = socket.recv_multipart()
        for message in wire.decode_to_engine(frame):
            if isinstance(message, wire.Hello):
                socket.send_multipart((client, wire.encode([ready])))
            elif isinstance(message, wire.Generate):
                ids.append(message.request_id)
        if len(ids) < streams:
            continue
        frames = [
            wire.encode([wire.Deltas([wire.Delta(i, 0, f" word{step}", (step,)) for i in ids])])
            for step in range(min(steps, 64))
        ]
        start = time.perf_counter()
        for step in range(steps):
            due = start + step * streams / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            socket.send_multipart((client, frames[step % len(frames)]))
        ends = [wire.Finished(i, (wire.Choice(0, "stop", None, None),), (1,), wire.Usage()) for i in ids]
        socket.send_multipart((client, wire.encode(ends)))
        ids = []


async def measure(address: str, streams: int) -> tuple[float, float, int, int]:
    """(wall seconds, CPU seconds of this process, tokens, deltas) of one run."""
    tokens = deltas = 0

    async def read(stream: octavo.Stream) -> None:
        nonlocal tokens, deltas
        async for delta in stream:
            tokens += len(delta.token_ids)
            deltas += 1

    async with await octavo.AsyncClient.connect(address) as client:
        async with anyio.create_task_group() as group:
            for number in range(streams - 1):
                group.start_soon(read, client.stream([number]))
            await anyio.wait_all_tasks_blocked()
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            group.start_soon(read, client.stream([streams]))
        return time.perf_counter() - wall, time.process_time() - cpu, tokens, deltas


async def longest_stall(during: Callable[[], Any]) -> float:
    """Seconds by which a task that sleeps 1 ms at a time was late at worst while during() ran."""
    worst = 0.0
    done = anyio.Event()

    async def probe() -> None:
        nonlocal worst
        while not done.is_set():
            due = time.perf_counter() + 0.001
            await anyio.sleep(0.001)
            worst = max(worst, time.perf_counter() - due)

    async with anyio.create_task_group() as group:
        group.start_soon(probe)
        await anyio.sleep(0.05)
        worst = 0.0
        await during()
        done.set()
    return worst


async def stalls(address: str, streams: int) -> tuple[float, float, float, float]:
    """Seconds: longest stall idle, under the streams, with long prompts too; the least that one prompt's call took."""

    async def read(stream: octavo.Stream) -> None:
        async for _ in stream:
            pass

    calls: list[float] = []

    async with await octavo.AsyncClient.connect(address) as client:

        async def send_prompts() -> None:
            for _ in range(_PROMPTS):
                start = time.perf_counter()
                stream = client.stream(_PROMPT)
                calls.append(time.perf_counter() - start)
                await anyio.sleep(0.1)
                await stream.aclose()

        gc.collect()
        idle = await longest_stall(lambda: anyio.sleep(1))
        async with anyio.create_task_group() as group:
            for number in range(streams):
                group.start_soon(read, client.stream([number]))
            await anyio.sleep(0.1)
            gc.collect()
            busy = await longest_stall(lambda: anyio.sleep(1))
            long = await longest_stall(send_prompts)
            group.cancel_scope.cancel()
    return idle, busy, long, min(calls)


@contextmanager
def peer_at(streams: int, steps: int, rate: float) -> Iterator[str]:
    """The address of a peer that runs meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{Path(folder) / 'peer.sock'}"
        command = [sys.executable, "-m", "tests.bench.client", "--streams", str(streams)]
        peer = subprocess.Popen([*command, "--serve", address, str(steps), str(rate)])
        try:
            yield address
        finally:
            peer.kill()
            peer.wait()


def print_stalls(streams: int, rate: float, rounds: int) -> None:
    """The least of some rounds: what else the machine does can only add."""
    encoding = []
    for _ in range(20):
        start = time.perf_counter()
        wire.encode([wire.Generate(1, octavo.SamplingParams(), text=_PROMPT)])
        encoding.append(time.perf_counter() - start)
    print(f"\nlongest stall of the loop in a second, ms, best of {rounds}; {streams} streams at {rate:,.0f} deltas/s")
    print(f"a text prompt of {len(_PROMPT) / 1e6:.1f} MB takes msgspec {min(encoding) * 1e3:.2f} ms to encode")
    print("loop          idle    streams   and 5 MB prompts   one call of stream(5 MB)")
    for name, backend, options in _LOOPS:
        results = []
        for _ in range(rounds):
            with peer_at(streams, int(rate * 10 / streams), rate) as address:
                results.append(anyio.run(stalls, address, streams, backend=backend, backend_options=options))
        idle, busy, long, call = (min(column) * 1e3 for column in zip(*results, strict=True))
        print(f"{name:8} {idle:9.2f} {busy:10.2f} {long:18.2f} {call:26.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, nargs="*", default=[60_000.0, 120_000.0])
    parser.add_argument("--rounds", type=int, default=3, help="of the stalls")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        address, steps, rate = arguments.serve
        serve(address, arguments.streams, int(steps), float(rate))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{arguments.streams} streams; floor to reach: 60,000 deltas/s, 16 us a delta")
    print("loop      asked/s  received/s   us CPU/delta   one core could   merged")
    for rate in arguments.rate:
        for name, backend, options in _LOOPS:
            steps = int(rate * arguments.seconds / arguments.streams)
            with peer_at(arguments.streams, steps, rate) as address:
                wall, cpu, tokens, deltas = anyio.run(
                    measure, address, arguments.streams, backend=backend, backend_options=options
                )
            assert tokens == steps * arguments.streams
            print(
                f"{name:8} {rate:8,.0f} {tokens / wall:11,.0f} {cpu / tokens * 1e6:14.2f} {tokens / cpu:16,.0f} "
                f"{1 - deltas / tokens:8.1%}"
            )
    print_stalls(arguments.streams, 10_000.0, arguments.rounds)


if __name__ == "__main__":
    main()
