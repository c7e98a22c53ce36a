"""The app behind a real socket, in a thread of its own, over a scripted engine: what a browser or a load can reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import uvicorn

from octavo import AsyncClient, EngineOptions
from octavo.openai import create_app
from octavo.testing import ScriptedEngine

__all__ = ["Live", "live", "toy"]


@dataclass
class Live:
    url: str
    engine: ScriptedEngine


class _Server(uvicorn.Server):
    """Signals are the main thread's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def live(engine: ScriptedEngine, wrap: Callable[[Any], Any] = lambda app: app, **options: Any) -> Iterator[Live]:
    """Serve until the block is left. wrap: makes another ASGI app of ours. options: create_app's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        servers: list[_Server] = []
        ready = threading.Event()

        async def main() -> None:
            async with engine.client() as client:
                servers.append(_Server(_config(client, wrap, options)))
                ready.set()
                await servers[0].serve(sockets=[listening])

        thread = threading.Thread(target=anyio.run, args=(main,))
        thread.start()
        assert ready.wait(20)
        try:
            yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}/", engine)
        finally:
            servers[0].should_exit = True
            thread.join()


def _config(client: AsyncClient, wrap: Callable[[Any], Any], options: dict[str, Any]) -> uvicorn.Config:
    app = wrap(create_app(client, **options))
    return uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)


def toy(script: Any, **options: Any) -> ScriptedEngine:
    """An engine that answers from the script, else "anything"."""
    return ScriptedEngine(script, default="anything", options=EngineOptions(model="models/toy", **options))
