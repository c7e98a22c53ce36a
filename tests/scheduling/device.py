"""A device that runs plans in the order in which they were handed to it, and knows no more of them than a runner would.

In place of keys and values it stores what they depend on: a cache cell holds a number that stands for (cache_salt,
regime, tokens 0 .. its position). Every step checks that each sequence's page table leads to exactly its own tokens,
written in the regime of its length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from octavo_engine.layers.rope import Regimes
from octavo_engine.scheduling.admission import SchedulerConfig
from octavo_engine.scheduling.plan import PENDING, REJECTED, Plan, SeqStep
from octavo_engine.scheduling.sequence import Sequence

Draw = Callable[[Sequence], int]
REGIMES: list[Regimes | None] = [None, None, None]
"""What a test may take one of."""
for _lengths in ((4, 99), (2, 5, 9, 99)):
    REGIMES += [Regimes(_lengths, 99), Regimes(_lengths, 99, by_prompt=True)]
    REGIMES += [Regimes(_lengths[:1], 99, growth=growth) for growth in (0, 0.3)]


def _root(seq: Sequence, regime: int) -> int:
    return hash((seq.request.cache_salt, regime))


class Work(NamedTuple):
    """A plan and whose slots those of plan.seqs are."""

    plan: Plan
    sequences: list[Sequence]
    samplers: list[Sequence]


class Device:
    def __init__(self, config: SchedulerConfig) -> None:
        self.page_size, self.max_num_seqs = config.page_size, config.max_num_seqs
        self.regimes = config.regimes
        self.cells: dict[tuple[int, int], int] = {}
        self.tables: dict[int, list[int]] = {}  # by slot, for those that have started
        self.last: dict[int, int] = {}  # the last token that a slot drew
        self.copied = -1

    def run(self, work: Work, draw: Draw, *, check: bool = True) -> list[int]:
        """What the samplers draw. check: the tokens of all sequences that live are known."""
        plan = work.plan
        again = plan.step <= self.copied
        self._apply_slots(plan, again)
        if not again:
            self._apply_copies(plan)
            self.copied = plan.step
        for step in plan.seqs:
            table = self.tables[step.slot]
            assert step.page_offset <= len(table) or not step.pages, "a gap in the page table"
            table[step.page_offset : step.page_offset + len(step.pages)] = step.pages
        for step, seq in zip(plan.seqs, work.sequences, strict=True):
            tokens = [self.last[step.slot]] if step.tokens == [PENDING] else step.tokens
            assert PENDING not in tokens
            for i, token in enumerate(tokens):
                self._write(step.slot, _root(seq, step.regime), step.start + i, token)
        for step, seq in zip(plan.seqs, work.sequences, strict=True):
            if check and seq.finish_reason is None:
                self._attend(step.slot, seq, step)
        drawn: list[int] = []
        samplers = iter(work.samplers)
        for step in plan.seqs:
            for slot in step.samplers:
                standing = self._draw(step, next(samplers), draw)
                self.last[slot] = standing[-1]
                drawn += standing + [REJECTED] * (1 + step.drafts - len(standing))
        return drawn

    @staticmethod
    def _draw(step: SeqStep, seq: Sequence, draw: Draw) -> list[int]:
        drawn = [draw(seq)]
        for guess in step.tokens[len(step.tokens) - step.drafts :]:
            if guess != drawn[-1]:
                break
            drawn.append(draw(seq))
        return drawn

    def _apply_slots(self, plan: Plan, again: bool) -> None:
        assert len(set(plan.ends)) == len(plan.ends)
        for slot in plan.ends:
            assert again or slot in self.tables, f"slot {slot} ends, but never started"
            self.tables.pop(slot, None)
        for start in plan.starts:
            assert again or start.slot not in self.tables, f"slot {start.slot} starts, but never ended"
            self.tables[start.slot] = []
        assert len(self.tables) <= self.max_num_seqs
        assert all(0 <= slot < self.max_num_seqs for slot in self.tables)

    def _apply_copies(self, plan: Plan) -> None:
        sources, targets = {s for s, _ in plan.copies}, [t for _, t in plan.copies]
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets), "the order of copies would matter"
        for source, target in plan.copies:
            for offset in range(self.page_size):
                self.cells.pop((target, offset), None)
                if (source, offset) in self.cells:
                    self.cells[target, offset] = self.cells[source, offset]

    def _write(self, slot: int, root: int, position: int, token: int) -> None:
        before = self.cells[self._cell(slot, position - 1)] if position else root
        self.cells[self._cell(slot, position)] = hash((before, token))

    def _attend(self, slot: int, seq: Sequence, step: SeqStep) -> None:
        stop = step.start + len(step.tokens) - step.drafts
        tokens = seq.tokens(0, stop)
        assert len(tokens) == stop
        if self.regimes is not None:
            length = stop if step.samplers else seq.num_tokens
            regime, most = self.regimes.choose(len(seq.request.prompt), length)
            assert step.regime == regime
            assert stop + step.drafts <= most, "guesses beyond the regime"
        value = _root(seq, step.regime)
        for position, token in enumerate(tokens):
            value = hash((value, token))
            assert self.cells[self._cell(slot, position)] == value, f"position {position} has other tokens"

    def _cell(self, slot: int, position: int) -> tuple[int, int]:
        return self.tables[slot][position // self.page_size], position % self.page_size
