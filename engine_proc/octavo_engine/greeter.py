"""What clients are told while the engine loads, or fails to."""

from __future__ import annotations

import contextlib

from octavo import wire
from octavo_engine.mailbox import Client, Mailbox, wrong_protocol

__all__ = ["Greeter", "StartFailed"]


class StartFailed(Exception):
    """Loading failed in a way that the client has a type for: `code` as in wire.Dying."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Greeter:
    """Tells the clients that say Hello how the loading goes. owned: by a client that spawned it, and may end it."""

    def __init__(self, mailbox: Mailbox, *, owned: bool) -> None:
        self.mailbox, self._owned = mailbox, owned
        self.clients: set[Client] = set()

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        self.hear(0)
        for client in list(self.clients):
            if not self.mailbox.send(client, [wire.Progress(stage, done, total, text)]):
                self.clients.discard(client)

    def hear(self, timeout: float) -> None:
        for client, message in self.mailbox.receive(timeout):
            match message:
                case wire.Hello(protocol) if protocol != wire.PROTOCOL_VERSION:
                    self.mailbox.send(client, [wrong_protocol(protocol)])
                case wire.Hello():
                    self.clients.add(client)
                case wire.Drain() if self._owned:
                    raise StartFailed("drained", "the client closed while the model was loading")
                case wire.Goodbye():
                    self.clients.discard(client)

    def farewell(self, dying: wire.Dying) -> None:
        """The spawner's Hello may still be on its way: wait for it a moment."""
        if not self.clients:
            with contextlib.suppress(StartFailed):
                self.hear(1.0)
        for client in self.clients:
            self.mailbox.send(client, [dying])
