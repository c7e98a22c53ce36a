"""Who may end an engine that is still loading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from octavo import wire
from octavo_engine.greeter import Greeter, StartFailed


class Mailbox:
    """Two clients say Hello, and one of them asks the engine to end."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self._mail = [(b"a", wire.Hello(wire.PROTOCOL_VERSION)), (b"b", wire.Hello(1)), (b"a", wire.Drain())]

    def receive(self, timeout: float) -> Iterator[tuple[bytes, Any]]:
        mail, self._mail = self._mail, []
        yield from mail

    def send(self, client: bytes, messages: list[Any]) -> bool:
        self.sent += [(client, message) for message in messages]
        return True


def test_the_client_that_spawned_it() -> None:
    greet = Greeter(Mailbox(), owned=True)  # type: ignore[arg-type]
    with pytest.raises(StartFailed) as caught:
        greet("load", 1, 2, "weights")
    assert caught.value.code == "drained"


def test_none_of_those_that_joined() -> None:
    mailbox = Mailbox()
    greet = Greeter(mailbox, owned=False)  # type: ignore[arg-type]
    greet("load", 1, 2, "weights")
    (refused, dying), told = mailbox.sent
    assert (refused, dying.code) == (b"b", "protocol")
    assert told == (b"a", wire.Progress("load", 1, 2, "weights"))
