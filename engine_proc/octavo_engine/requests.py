"""The requests that live: found by the name their client gave them, or by a key of the engine's own; their deadlines.

A client may give a name again as soon as its request has ended or was aborted. What still comes for the old one (a long
prompt that was being tokenised, a grammar, a step on the device, a deadline) carries its key, which nobody has twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from octavo_engine.delivery import Live

if TYPE_CHECKING:
    from octavo import wire
    from octavo_engine.mailbox import Client

__all__ = ["Key", "Requests"]


Key = Hashable
"""A number, of all requests of this engine; plain Hashable, as the scheduler knows it."""


_ROOM = 1024


class Requests:
    """Times are in seconds of the core's clock. by_key: all that live, to be looked up alone."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Live] = {}
        self._keys: dict[tuple[Client, int], Key] = {}
        self._numbers = count()
        self._deadlines: list[tuple[float, Key, str]] = []
        self._room = _ROOM  # of those; then the ones of requests that have ended are thrown out

    def __len__(self) -> int:
        return len(self.by_key)

    def __iter__(self) -> Iterator[Live]:
        return iter(self.by_key.values())

    def __getitem__(self, key: Key) -> Live:
        return self.by_key[key]

    def get(self, key: Key) -> Live | None:
        """None where it has ended."""
        return self.by_key.get(key)

    def begin(self, client: Client, message: wire.Generate, now: float) -> tuple[Key, Live]:
        """Its name must be free (see `key_of`)."""
        key = next(self._numbers)
        self._keys[client, message.request_id] = key
        self.by_key[key] = live = Live(client, message, now)
        return key, live

    def end(self, key: Key) -> Live | None:
        """Forget it, so that its name is free. None where it has ended before."""
        live = self.by_key.pop(key, None)
        if live is not None:
            del self._keys[live.client, live.generate.request_id]
        return live

    def key_of(self, client: Client, request_id: int) -> Key | None:
        """Of the live request of that name."""
        return self._keys.get((client, request_id))

    def all_keys(self, client: Client | None = None) -> list[Key]:
        """Of all that live, or of one client's."""
        return [key for key, live in self.by_key.items() if client is None or live.client == client]

    def watch(self, key: Key, at: float, which: str) -> None:
        """Have it given by `expired` at that time, if it lives then."""
        if len(self._deadlines) >= self._room:  # hour-long deadlines of short requests would pile up
            self._deadlines = [due for due in self._deadlines if due[1] in self.by_key]
            heapq.heapify(self._deadlines)
            self._room = max(_ROOM, 2 * len(self._deadlines))
        heapq.heappush(self._deadlines, (at, key, which))

    def next_deadline(self) -> float | None:
        """No later than the next that `expired` has something to give."""
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> Iterator[tuple[Key, Live, str]]:
        """(key, request, which deadline), of those that have come. Requests may be ended between."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key, which = heapq.heappop(self._deadlines)
            live = self.by_key.get(key)
            if live is not None:
                yield key, live, which
