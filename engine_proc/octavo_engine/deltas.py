"""The deltas of sequences that drew one token which is nothing but text: no logprob, no stop strings, and they go on.

That is nearly all of them, step after step the same ones. So what is known of each is kept, one column a thing, and a
step is a few passes over whole columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from operator import attrgetter, getitem
from typing import TYPE_CHECKING, Any

from octavo import wire

if TYPE_CHECKING:
    from octavo_engine.delivery import Live
    from octavo_engine.mailbox import Client
    from octavo_engine.requests import Key
    from octavo_engine.scheduling.sequence import Sequence
    from octavo_engine.text import Stream

__all__ = ["PlainDeltas"]

_TEXT = frozenset([str])
_ENDED = attrgetter("finish_reason")


class PlainDeltas:
    """others: places in the last step of those that are not plain, to be told one by one (Live.delta), and how many
    tokens of the same sequence come behind."""

    def __init__(self) -> None:
        self.others: list[tuple[int, int]] = []
        self._sequences: list[Sequence] | list[Sequence | None] | None = None  # of the last step; None: look again
        self._places: list[int] = []
        self._clients: dict[Client, list[int]] = {}  # by numbers in _places
        self._ids: list[int] = []
        self._indexes: list[int] = []
        self._tables: list[Mapping[int, Any]] = []
        self._streams: list[Stream] = []
        self._open: set[int] = set()  # of _streams, those that are in the middle of something

    def tell(
        self,
        sequences: list[Sequence] | list[Sequence | None],
        tokens: list[int],
        found: Mapping[Key, Live],
        now: float,
    ) -> dict[Client, list[wire.Delta]]:
        """Of a step in which these drew such tokens; None: the token is nobody's. found: their requests."""
        if sequences != self._sequences or any(map(_ENDED, sequences)):
            self._look(sequences, found, now)
        if self.others or len(self._places) < len(tokens):
            tokens = [tokens[place] for place in self._places]
        texts = list(map(getitem, self._tables, tokens))
        if self._open or not _TEXT.issuperset(map(type, texts)):
            fed = self._open.union([i for i, text in enumerate(texts) if text.__class__ is not str])
            for i in fed:
                texts[i] = self._streams[i].feed((tokens[i],))
            self._open = {i for i in fed if self._streams[i].open}
        deltas = list(map(wire.Delta, self._ids, self._indexes, texts, zip(tokens, strict=True)))
        if len(self._clients) == 1:
            return dict.fromkeys(self._clients, deltas)
        return {client: [deltas[i] for i in own] for client, own in self._clients.items()}

    def _look(self, sequences: list[Sequence] | list[Sequence | None], found: Mapping[Key, Live], now: float) -> None:
        self.others, self._places, self._ids, self._indexes = [], [], [], []
        self._tables, self._streams, self._sequences = [], [], sequences
        clients: defaultdict[Client, list[int]] = defaultdict(list)
        for place, sequence in enumerate(sequences):
            if sequence is None:
                self._sequences = None
                continue
            live, index = found[sequence.request.key], sequence.index
            if live.first_token is None:
                live.first_token = now
            stream = live.streams[index]
            behind = 0
            while sequences[place + behind + 1 : place + behind + 2] == [sequence]:
                behind += 1
            several = behind or (place and sequences[place - 1] is sequence)
            if stream is None or several or sequence.finish_reason is not None:
                self.others.append((place, behind))
                continue
            clients[live.client].append(len(self._places))
            self._places.append(place)
            self._ids.append(live.generate.request_id)
            self._indexes.append(index)
            self._tables.append(stream.table)
            self._streams.append(stream)
        self._clients = clients
        self._open = {i for i, stream in enumerate(self._streams) if stream.open}
