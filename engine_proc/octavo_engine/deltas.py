"""The deltas of sequences that drew one token which is nothing but text: no logprob, no stop strings, and they go on.

That is nearly all of them, step after step the same ones. So what is known of each is kept, one column a thing, and a
step is a few passes over whole columns; and what becomes of a token on the wire is kept too (wire.delta_tail).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter, getitem
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import wire

if TYPE_CHECKING:
    from octavo_engine.delivery import Live
    from octavo_engine.mailbox import Client
    from octavo_engine.requests import Key
    from octavo_engine.scheduling.sequence import Sequence
    from octavo_engine.text import Stream

__all__ = ["PlainDeltas"]

_ENDED = attrgetter("finish_reason")


class _Tails(dict[int, bytes]):
    """By token: its delta, but for whose it is, where its text depends on nothing else; else nothing."""

    def __init__(self, texts: Mapping[int, Any]) -> None:
        self.texts = texts

    def __missing__(self, token: int) -> bytes:
        text = self.texts[token]
        tail = self[token] = wire.delta_tail(text, token) if isinstance(text, str) else b""
        return tail


@dataclass(slots=True)
class _Frame:
    """One client's: which of the columns' places are its own, and what stands before the tail of each."""

    places: list[int]
    parts: list[bytes]


class PlainDeltas:
    """others: places in the last step of those that are not plain, to be told one by one (Live.delta), and how many
    tokens of the same sequence come behind. places: of those that are."""

    def __init__(self) -> None:
        self.others: list[tuple[int, int]] = []
        self.places: list[int] = []
        self._sequences: list[Sequence] | list[Sequence | None] | None = None  # of the last step; None: look again
        self._frames: dict[Client, _Frame] = {}
        self._tails: list[_Tails] = []
        self._only: _Tails | None = None  # the same for all, as a rule
        self._streams: list[Stream] = []
        self._open: set[int] = set()  # of _streams, those that are in the middle of something
        self._tables: dict[int, _Tails] = {}  # by the id of a stream's table: there is a handful

    def tell(
        self,
        sequences: list[Sequence] | list[Sequence | None],
        tokens: list[int],
        found: Mapping[Key, Live],
        now: float,
    ) -> dict[Client, msgspec.Raw]:
        """Of a step in which these drew such tokens, each client's wire.Deltas; None: the token is nobody's. found:
        their requests."""
        if sequences != self._sequences or any(map(_ENDED, sequences)):
            self._look(sequences, found, now)
        if self.others or len(self.places) < len(tokens):
            tokens = [tokens[place] for place in self.places]
        if self._only is None:
            tails = list(map(getitem, self._tails, tokens))
        else:
            tails = list(map(self._only.__getitem__, tokens))
        if self._open or b"" in tails:
            fed = self._open.union([i for i, tail in enumerate(tails) if not tail])
            for i in fed:
                tails[i] = wire.delta_tail(self._streams[i].feed((tokens[i],)), tokens[i])
            self._open = {i for i in fed if self._streams[i].open}
        told = {}
        for client, frame in self._frames.items():
            frame.parts[1::2] = tails if len(frame.places) == len(tails) else [tails[i] for i in frame.places]
            told[client] = msgspec.Raw(b"".join(frame.parts))
        return told

    def _look(self, sequences: list[Sequence] | list[Sequence | None], found: Mapping[Key, Live], now: float) -> None:
        self.others, self.places, self._tails, self._streams, self._sequences = [], [], [], [], sequences
        frames = self._frames = {}
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
            frame = frames.setdefault(live.client, _Frame([], []))
            frame.places.append(len(self.places))
            frame.parts += (wire.delta_head(live.generate.request_id, index), b"")
            self.places.append(place)
            self._tails.append(self._of_table(stream.table))
            self._streams.append(stream)
        for frame in frames.values():
            frame.parts[0] = wire.deltas_head(len(frame.places)) + frame.parts[0]
        self._only = self._tails[0] if len(set(map(id, self._tails))) == 1 else None
        self._open = {i for i, stream in enumerate(self._streams) if stream.open}

    def _of_table(self, texts: Mapping[int, Any]) -> _Tails:
        tails = self._tables.get(id(texts))
        if tails is None or tails.texts is not texts:
            tails = self._tables[id(texts)] = _Tails(texts)
        return tails
