"""Beams as sequences: who goes on from whose pages.

The beams of a group need not run in the same step: one that has drawn waits (Running.parked) until all have, and gives
slot and pages back where they are needed for others, since what it drew is kept. Then the search goes on. The first
continuation of a beam keeps its sequence; another takes the sequence of a beam that died and shares the pages, of which
it will copy the last one when it writes to it. Who finds no slot, or no pages to share, is recomputed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from octavo_engine.scheduling.admission import SchedulerConfig
from octavo_engine.scheduling.beam_search import Top
from octavo_engine.scheduling.page_tables import PageTables
from octavo_engine.scheduling.running import Running
from octavo_engine.scheduling.sequence import BeamGroup, Request
from octavo_engine.scheduling.sequence import Sequence as Beam
from octavo_engine.scheduling.waiting import WaitingQueue

__all__ = ["Beams", "Scored"]


class Scored(Protocol):
    """A drawn token's logprobs, and the best ones."""

    @property
    def top(self) -> Top: ...


class Beams:
    """All searches of a scheduler, whose tables and lists it works on."""

    def __init__(self, config: SchedulerConfig, tables: PageTables, running: Running, waiting: WaitingQueue) -> None:
        self._config = config
        self._tables, self._running, self._waiting = tables, running, waiting
        self._found: list[Request] = []

    def take_found(self) -> list[Request]:
        """Whose searches have ended since the last call; request.search.finished holds the answers."""
        found, self._found = self._found, []
        return found

    def advance(self, drew: Iterable[Beam], logprobs: Sequence[Scored | None]) -> list[Beam]:
        """These sequences drew tokens with such logprobs, beams or not. Returns the beams whose search has ended."""
        groups: dict[BeamGroup, Request] = {}
        for i, seq in enumerate(drew):
            if seq.group is not None and seq.finish_reason is None:
                entry = logprobs[i]
                assert entry is not None, "beams ask for logprobs"
                seq.group.tops[seq] = entry.top
                groups[seq.group] = seq.request
        ended: list[Beam] = []
        for group, request in groups.items():
            if len(group.tops) == len(group.live):
                ended += self._go_on(group, request)
            else:
                for seq in [seq for seq in group.tops if seq in self._running.decoding]:
                    self._running.park(seq)
        return ended

    def forget(self, request: Request) -> None:
        """It was ended from outside, at any time: its beams wait for nothing any more."""
        for seq in request.sequences:
            seq.followers, seq.leader = [], None
            if seq.slot < 0 and seq in self._waiting:
                self._waiting.remove(seq)

    def _go_on(self, group: BeamGroup, request: Request) -> list[Beam]:
        before = group.live
        children = group.search.advance([group.tops[seq] for seq in before])
        group.tops.clear()
        if group.search.done:
            self._found.append(request)
            self.forget(request)
            return request.sequences
        running = self._running
        running.decoding = [seq for seq in running.decoding if seq.group is not group]
        running.parked = [seq for seq in running.parked if seq.group is not group]
        kept = {before[parent] for parent, _ in children}
        spare = self._spare(request, kept)
        outputs = [[*before[parent].output, token] for parent, token in children]
        group.live = []
        for (parent, _), output in zip(children, outputs, strict=True):
            source = before[parent]
            heir = source if source in kept else spare.pop()
            kept.discard(source)
            heir.output = output
            group.live.append(heir)
            self._place(heir, source)
        for seq in spare:
            self._vacate(seq)
        return []

    def _spare(self, request: Request, kept: set[Beam]) -> list[Beam]:
        """The other sequences, without pages; those that have slots are at the end."""
        spare = [seq for seq in request.sequences if seq not in kept]
        for seq in spare:
            self._tables.release(seq)
            if seq.leader is not None:
                seq.leader.followers.remove(seq)
                seq.leader = None
        return sorted(spare, key=lambda seq: seq.slot >= 0)

    def _place(self, heir: Beam, source: Beam) -> None:
        """Let it run on the pages of `source`, which may be itself; or wait, where that can't be."""
        if heir.slot >= 0 and source.slot >= 0:
            if heir is not source:
                heir.regime, heir.limit = source.regime, source.limit
                self._tables.share(source, heir)
            self._running.decode(heir)
            return
        self._vacate(heir)
        heir.choose_regime(self._config.regimes)
        self._waiting.push(heir)

    def _vacate(self, seq: Beam) -> None:
        if seq.slot >= 0:
            self._running.vacate(seq)
