"""Plans that were handed out and not yet committed: one, or two where the next is scheduled while one runs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo_engine.scheduling.plan import Plan
from octavo_engine.scheduling.sequence import Sequence

__all__ = ["Flight", "Flights", "Prefill"]


class Prefill(NamedTuple):
    """The next `length` tokens of `seq`, from `start` on. samplers: empty, or `seq` and the choices that fork here."""

    seq: Sequence
    start: int
    length: int
    samplers: list[Sequence]


@dataclass(slots=True)
class Flight:
    """A plan and whom it is about. decodes: those of the plan's first seqs; filled: those of them whose token is the
    last of a page, and the length with it. ends: the tokens that would end one of the decodes, where nothing else can
    end one in this step and nobody else draws; else None.

    replaced: pages that sequences of this flight may still use, though their tables name others now; each counts a
    reference until the flight has landed. drafted: some of the decodes carry drafts.
    """

    plan: Plan
    decodes: list[Sequence]
    prefills: list[Prefill]
    filled: list[tuple[Sequence, int]] = field(default_factory=list)
    ends: frozenset[int] | None = None
    replaced: list[int] = field(default_factory=list)
    drafted: bool = False

    @property
    def drew(self) -> list[Sequence]:
        """Who draws, in the order of the plan's samplers."""
        decodes = self.decodes
        if self.drafted:
            steps = zip(decodes, self.plan.steps, strict=False)
            decodes = [seq for seq, step in steps for _ in range(step.num_drawn)]
        if not self.prefills:
            return decodes
        return decodes + [seq for prefill in self.prefills for seq in prefill.samplers]

    @property
    def sequences(self) -> list[Sequence]:
        return self.decodes + [s for p in self.prefills for s in (p.samplers or [p.seq])]


class Flights:
    """In the order in which they were handed out, which is that in which they run and are committed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._flights: deque[Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def full(self) -> bool:
        return len(self._flights) == self._limit

    @property
    def newest(self) -> Flight:
        return self._flights[-1]

    def push(self, flight: Flight) -> None:
        self._flights.append(flight)

    def land(self, plan: Plan, num_drawn: int) -> tuple[Flight, list[Sequence]]:
        """Take out the oldest, and who drew. Raises RuntimeError if it is not the plan's, ValueError if another number
        was drawn; then nothing has changed."""
        if not self._flights or self._flights[0].plan is not plan:
            raise RuntimeError(f"plan {plan.step} is not the one in flight")
        drew = self._flights[0].drew
        if num_drawn != len(drew):
            raise ValueError(f"step {plan.step} has {len(drew)} samplers, got {num_drawn} tokens")
        return self._flights.popleft(), drew

    def drop(self) -> Flight:
        """Take out the oldest, which did not land. Raises RuntimeError if one of its sequences lives."""
        flight = self._flights[0]
        alive = [seq.slot for seq in flight.sequences if seq.finish_reason is None]
        if alive:
            raise RuntimeError(f"plan {flight.plan.step} was not committed; slots {alive} are live")
        return self._flights.popleft()

    def sequences(self) -> set[Sequence]:
        """All that are in some flight."""
        return {seq for flight in self._flights for seq in flight.sequences}

    def replaced(self) -> list[int]:
        return [page for flight in self._flights for page in flight.replaced]
