"""A web worker of `octavo serve --workers N`: its argument is the listening socket's number, its settings are on stdin.

It ends when stdin does, that is when its parent has gone, however that went.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from functools import partial

import anyio
import msgspec

from octavo.joining import Joined
from octavo.openai.keeping import keep_joined
from octavo.openai.serve import run
from octavo.serving import ServeOptions

__all__: list[str] = []


class _Settings(msgspec.Struct):
    joined: Joined
    options: ServeOptions


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock this thread would hold when the interpreter exits, which is fatal to it.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def _main() -> None:
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Settings)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listening = socket.socket(fileno=int(sys.argv[1]))
    async with await settings.joined.connect() as client:
        await run(client, settings.options, listening, partial(keep_joined, client))


if __name__ == "__main__":
    anyio.run(_main)
