"""`octavo serve`: the app under uvicorn, by itself or in several worker processes that share one engine."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

import anyio
import msgspec
import uvicorn

from octavo.client import AsyncClient
from octavo.errors import InvalidOption, OctavoError
from octavo.joining import Joined
from octavo.loop import running_loop
from octavo.openai.app import create_app
from octavo.openai.cors import cors
from octavo.openai.dialogue import check_parsers
from octavo.openai.keeping import keep_engine, keep_joined, say
from octavo.serving import ServeOptions

__all__ = ["Keeper", "listen", "run", "serve"]

Keeper = Callable[[], Awaitable[OctavoError]]
"""Sees to it that there is an engine; returns why there will be none any more."""


def listen(options: ServeOptions) -> socket.socket:
    """The place, taken before anything slow begins; nobody is let in yet. Raises InvalidOption, for any option."""
    check_parsers(options.tool_parser, options.reasoning_parser)
    cors(**options.cors())
    try:
        places = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidOption("--host", options.host, f"an address of this machine: {error}") from None
    # "localhost" is 127.0.0.1 to most who call it.
    family, kind, protocol, _, place = min(places, key=lambda found: found[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(place)
    except OSError as error:
        listening.close()
        raise _occupied(options, error) from None
    return listening


def _occupied(options: ServeOptions, error: OSError) -> InvalidOption:
    return InvalidOption("--port", options.port, f"one that is free at --host {options.host}: {error}")


async def serve(
    client: AsyncClient, options: ServeOptions, listening: socket.socket, joined: Joined | None = None
) -> None:
    """Serve at what `listen` has taken until SIGTERM or SIGINT; what runs has drain_timeout seconds to end then.

    joined: how the client's engine is joined, where somebody else runs it: then that one sees to its restarts. Raises
    EngineDead where an engine of our own died more than engine_restarts times.
    """
    with listening:
        try:
            listening.listen(2048)
        except OSError as error:  # somebody began to listen meanwhile
            raise _occupied(options, error) from None
        print(f"octavo: {_names(client, options)} on http://{_place(listening)}", file=sys.stderr, flush=True)
        keep = partial(keep_joined, client, say) if joined else partial(keep_engine, client, options.engine_restarts)
        if options.workers == 1:
            await run(client, options, listening, keep)
        else:
            await _supervise(joined or Joined(address=client.address), options, listening, keep)


async def run(client: AsyncClient, options: ServeOptions, listening: socket.socket, keeper: Keeper) -> None:
    """One process's share: the app over this client on this socket, until SIGTERM or SIGINT, or until `keeper`
    gives up: raises what that returns."""
    if options.access_log:
        _log_accesses()
    app = create_app(
        client,
        served_model_name=options.served_model_name,
        api_keys=options.api_key,
        max_body_bytes=options.max_body_bytes,
        keep_alive=options.keep_alive,
        tool_parser=options.tool_parser,
        reasoning_parser=options.reasoning_parser,
        response_store_bytes=options.response_store_bytes if options.workers == 1 else 0,
        page=options.page,
        **options.cors(),
    )
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", timeout_graceful_shutdown=max(1, round(options.drain_timeout))
    )
    # uvicorn raises the signal once more behind itself, when there is still an engine to close.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    ends: list[OctavoError] = []
    loop, keeping = running_loop(), anyio.CancelScope()
    server = _Server(config, lambda: loop.soon(keeping.cancel))

    async def keep() -> None:
        with keeping:
            ends.append(await keeper())
            server.should_exit = True

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep)
            await server.serve(sockets=[listening])
            keeping.cancel()
    finally:
        signal.signal(signal.SIGTERM, before)
    if ends:
        raise ends[0]


class _Server(uvicorn.Server):
    """on_signal: it is to end; an engine that ends now, too (the signal may have reached all), is not started again."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal()
        super().handle_exit(sig, frame)


def _log_accesses() -> None:
    """To stderr: the process is the server's own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("octavo.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


# ---- several workers ---------------------------------------------------------------------------------------------


async def _supervise(joined: Joined, options: ServeOptions, listening: socket.socket, keeper: Keeper) -> None:
    """Keep the workers running, each with its own client of the engine, until a signal comes or `keeper`
    gives up."""
    listening.set_inheritable(True)
    settings = msgspec.json.encode({"joined": joined, "options": options}).decode()
    # -P: as for the engine, a module in the working directory must not shadow what is imported.
    command = [sys.executable, "-P", "-m", "octavo.openai.worker", str(listening.fileno())]
    workers: list[anyio.abc.Process] = []
    ends: list[OctavoError] = []
    serving, keeping, stopping = anyio.CancelScope(), anyio.CancelScope(), anyio.Event()

    async def keep() -> None:
        while not stopping.is_set():
            started = anyio.current_time()
            async with _worker(command, settings, listening) as process:
                workers.append(process)
                code = await process.wait()
                workers.remove(process)
            if stopping.is_set():
                return
            print(f"octavo: a web worker ended with {code}; starting another", file=sys.stderr, flush=True)
            await anyio.sleep(max(0.0, 1.0 - (anyio.current_time() - started)))

    async def keep_the_engine() -> None:
        with keeping:
            ends.append(await keeper())
            serving.cancel()

    async with anyio.create_task_group() as tasks:
        for _ in range(options.workers):
            tasks.start_soon(keep)
        tasks.start_soon(keep_the_engine)
        with serving, anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                break
        stopping.set()
        keeping.cancel()
        with anyio.move_on_after(options.drain_timeout + 1):
            ending = list(workers)
            for process in ending:
                process.terminate()
            for process in ending:
                await process.wait()
        tasks.cancel_scope.cancel()
    if ends:
        raise ends[0]


@asynccontextmanager
async def _worker(command: list[str], settings: str, listening: socket.socket) -> AsyncIterator[Any]:
    """A worker process with its settings on stdin (a key given as an argument could be read by everybody), in a session
    of its own: what Ctrl-C on the terminal means is ours to say."""
    process = await anyio.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=None,
        stderr=None,
        pass_fds=[listening.fileno()],
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        with contextlib.suppress(anyio.BrokenResourceError):  # it has ended already, as is seen at once
            await process.stdin.send(settings.encode() + b"\n")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


def _place(listening: socket.socket) -> str:
    host, port, *_ = listening.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _names(client: AsyncClient, options: ServeOptions) -> str:
    return options.served_model_name[0] if options.served_model_name else client.options.model
