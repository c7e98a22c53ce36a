"""`python -m tests.bench.client`: what one delta costs the client, from the socket into `async for`.

A peer process speaks the wire over a real ipc socket and sends one frame a step with a delta for each of 256 streams,
at a fixed rate; the client's CPU time over the run gives us a delta, and its inverse what one core could take. A delta
that was merged with its neighbour still counts once a token, and the share of merged ones is printed: it tells that
the reader fell behind.
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
from pathlib import Path

import anyio
import zmq

import octavo
from octavo import wire
from octavo.options import EngineOptions

__all__ = ["main"]


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, nargs="*", default=[60_000.0, 120_000.0])
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
        for name, backend, options in (
            ("asyncio", "asyncio", {"use_uvloop": False}),
            ("uvloop", "asyncio", {"use_uvloop": True}),
            ("trio", "trio", {}),
        ):
            steps = int(rate * arguments.seconds / arguments.streams)
            with tempfile.TemporaryDirectory() as folder:
                address = f"ipc://{Path(folder) / 'peer.sock'}"
                command = [sys.executable, "-m", "tests.bench.client", "--streams", str(arguments.streams)]
                peer = subprocess.Popen([*command, "--serve", address, str(steps), str(rate)])
                try:
                    wall, cpu, tokens, deltas = anyio.run(
                        measure, address, arguments.streams, backend=backend, backend_options=options
                    )
                finally:
                    peer.kill()
                    peer.wait()
            assert tokens == steps * arguments.streams
            print(
                f"{name:8} {rate:8,.0f} {tokens / wall:11,.0f} {cpu / tokens * 1e6:14.2f} {tokens / cpu:16,.0f} "
                f"{1 - deltas / tokens:8.1%}"
            )


if __name__ == "__main__":
    main()
