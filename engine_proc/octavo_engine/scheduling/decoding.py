"""Running sequences take a step, one token each; and who gives way where there is no page for it.

When a decode finds no page, the running sequence of the largest rank (lowest priority, latest arrival) gives its pages
back and waits to be recomputed, which the prefix cache makes cheap while its pages survive. The smallest rank never
gives way, so there is always progress. While a step is in flight nobody gives way: who lacks a page waits.
A sequence that outgrows its regime (layers.rope) gives its pages back in the same way, to be computed anew in the next.

Mostly the same sequences decode on for many steps, until one comes, ends or lacks something. What they do is then said
once (plan.Again), and a step looks at their pages alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from octavo_engine.scheduling.admission import SchedulerConfig
from octavo_engine.scheduling.census import Counters
from octavo_engine.scheduling.page_tables import PageTables
from octavo_engine.scheduling.plan import PENDING, Again, Plan, SeqStep
from octavo_engine.scheduling.running import Running
from octavo_engine.scheduling.sequence import Sequence
from octavo_engine.scheduling.waiting import WaitingQueue

__all__ = ["Decoding"]

# Shared by the steps of all sequences, which nobody changes: lists made anew would wake the garbage collector.
_PENDING: list[int] = [PENDING]
_NOTHING: list[int] = []


@dataclass(slots=True)
class _Together:
    """Sequences that were all that ran in a step, each for a token, and do so again.

    steps: of that step, `further` steps ago. until: from so many on it has to be looked at each of them again. wait:
    some can't go on before their last token is known. ends: the tokens that end one of them.
    """

    seqs: list[Sequence]
    steps: list[SeqStep]
    until: int
    wait: bool
    ends: frozenset[int]
    further: int = 0


class Decoding:
    """Works on the scheduler's lists. stalled: nothing more is scheduled before all that is in flight has landed.

    filled, ends: of the last plan's decodes, see Flight.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        tables: PageTables,
        running: Running,
        waiting: WaitingQueue,
        counters: Counters,
    ) -> None:
        self._config, self._tables, self._running = config, tables, running
        self._waiting, self._counters = waiting, counters
        self.stalled = False
        self.filled: list[tuple[Sequence, int]] = []
        self.ends: frozenset[int] | None = None
        self._together: _Together | None = None

    def add(self, plan: Plan, *, ahead: bool, ended: bool) -> list[Sequence]:
        """A step of each that decodes, while the plan is empty. Returns them. ahead: a step is in flight; ended: so are
        sequences that have ended."""
        self.filled, self.ends = [], None
        together = self._together
        if together is not None and not ended and self._goes_on(together, ahead):
            self._again(together, plan, ahead)
            return together.seqs
        self._together = None
        return self._ahead(plan) if ahead else self._now(plan)

    def keep(self, plan: Plan, decodes: list[Sequence]) -> None:
        """Each of these runs one token, whatever others do: the next plan may say the same of them."""
        if self._together is None and decodes and len(decodes) == len(self._running.decoding):
            if any(seq.group is not None for seq in decodes):
                return
            until = min([min(s.max_output - len(s.output) - 1, s.limit - s.num_computed + 1) for s in decodes])
            wait = any(len(seq.output) < seq.waits_until for seq in decodes)
            ends = frozenset().union(*{seq.stops for seq in decodes})
            steps = plan.steps[: len(decodes)]
            self._together = _Together(decodes, steps, until, wait, ends)

    def forget(self) -> None:
        """There may be more tokens in the next plan."""
        self._together = self.ends = None

    def _goes_on(self, together: _Together, ahead: bool) -> bool:
        seqs = together.seqs
        return (
            together.further + 1 < together.until
            and not (together.wait and ahead)
            and self._running.decoding == seqs
            and self._tables.pool.num_available >= len(seqs)  # nobody has to give way, or to wait
        )

    def _again(self, together: _Together, plan: Plan, ahead: bool) -> None:
        together.further += 1
        seqs, size = together.seqs, self._config.page_size
        paged: list[tuple[int, int, list[int]]] = []
        for place, seq in enumerate(seqs):
            start = seq.num_computed
            stop = seq.num_computed = start + 1
            if stop >= seq.room:
                if start >= seq.room:
                    seq.num_computed = start
                    self._make_room(seq, plan, ahead=ahead)
                    seq.num_computed = stop
                    offset, seq.sent = seq.sent, len(seq.pages)
                    paged.append((place, offset, seq.pages[offset:]))
                if not stop % size:
                    self.filled.append((seq, stop))
        tokens = [] if ahead else [seq.output[-1] for seq in seqs]
        plan.steps, plan.again = together.steps, Again(together.further, tokens, paged)
        if together.further + 1 < together.until:
            self.ends = together.ends

    def vacate(self, seq: Sequence) -> None:
        """It gives slot and pages back."""
        self._tables.release(seq)
        self._running.vacate(seq)

    def _now(self, plan: Plan) -> list[Sequence]:
        """One token each of the running sequences. Returns those of plan.seqs."""
        steps, size = plan.steps, self._config.page_size
        # Preemption pops this list's tail while it is walked: a sequence already in the plan is never popped.
        for seq in islice(self._running.decoding, self._config.max_num_batched_tokens):
            start = seq.num_computed
            if start < seq.room:
                steps.append(SeqStep(seq.slot, start, [seq.output[-1]], 0, _NOTHING, seq.samplers, -1, -1, seq.regime))
            elif self._make_room(seq, plan, ahead=False):
                offset, seq.sent = seq.sent, len(seq.pages)
                new = seq.pages[offset:]
                steps.append(SeqStep(seq.slot, start, [seq.output[-1]], offset, new, seq.samplers, regime=seq.regime))
            else:
                break
            stop = seq.num_computed = start + 1
            if not stop % size:
                self.filled.append((seq, stop))
        return self._running.decoding[: len(steps)]

    def _ahead(self, plan: Plan) -> list[Sequence]:
        """The same while a step is in flight. Who cannot take part without that step's tokens is left out."""
        decodes: list[Sequence] = []
        steps, most, size = plan.steps, self._config.max_num_batched_tokens, self._config.page_size
        for seq in self._running.decoding:
            if len(decodes) == most:
                break
            start, drawn = seq.num_computed, len(seq.output)
            pending = start == len(seq.request.prompt) + drawn
            waits = pending and (drawn + 1 >= seq.max_output or drawn < seq.waits_until)
            if waits or seq.finish_reason is not None:
                continue
            offset, new = 0, _NOTHING
            if start >= seq.room:
                if not self._make_room(seq, plan, ahead=True):
                    break
                offset, seq.sent = seq.sent, len(seq.pages)
                new = seq.pages[offset:]
            tokens = _PENDING if pending else [seq.output[-1]]
            steps.append(SeqStep(seq.slot, start, tokens, offset, new, seq.samplers, -1, -1, seq.regime))
            stop = seq.num_computed = start + 1
            if not stop % size:
                self.filled.append((seq, stop))
            decodes.append(seq)
        return decodes

    def _make_room(self, seq: Sequence, plan: Plan, *, ahead: bool) -> bool:
        """See that its next token can be written. False: `seq` itself had to give way, or has to wait."""
        if seq.num_computed >= seq.limit:  # what it draws is in flight: the change of regime must wait for that
            self.stalled = True
            return False
        while self._tables.needs_page(seq):
            if self._tables.pool.num_available:
                self._tables.add_page(seq, plan.copies)
                break
            if ahead:
                self.stalled = True
                return False
            if self._preempt() is seq:
                return False
        seq.room = min(len(seq.pages) * self._config.page_size, seq.limit)
        return True

    def change_regimes(self) -> None:
        """Requeue what has outgrown its regime; nothing is in flight."""
        for seq in [seq for seq in self._running.decoding if seq.num_computed >= seq.limit]:
            self._running.decoding.remove(seq)
            self._requeue(seq)

    def _requeue(self, seq: Sequence) -> None:
        """It runs no more, gives back slot and pages, and waits to be recomputed."""
        self.vacate(seq)
        seq.choose_regime(self._config.regimes)
        self._waiting.push(seq)

    def _preempt(self) -> Sequence:
        """The last gives way. It waits to be recomputed, unless it is a beam that has drawn."""
        victim = self._running.pop_last()
        self._counters.preemptions += 1
        if victim.group is None or victim not in victim.group.tops:
            self._requeue(victim)
        else:
            self.vacate(victim)
        return victim

    def shelve(self) -> bool:
        """Nothing can run: is it because of beams that wait for others? The last of them gives way."""
        if not self._running.parked:
            return False
        victim = self._running.parked.pop()
        self.vacate(victim)
        self._counters.preemptions += 1
        return True
