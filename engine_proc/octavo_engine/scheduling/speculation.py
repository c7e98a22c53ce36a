"""Speculative decoding (arXiv 2211.17192): how many tokens to guess, from what guessing has brought and cost so far.

A step of several rows costs less than as many steps. Guesses are made by a Proposer; the runner draws a token behind
each, and those stand up to the first wrong guess (plan.SeqStep.drafts). What is drawn does not depend on any of it, so
how much is guessed may follow the clock: the number of guesses a sequence is the one that makes for the most tokens a
second by each sequence's measured rate of right ones and the measured time of a step, none where that is best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from octavo_engine.scheduling.page_tables import PageTables
from octavo_engine.scheduling.plan import PENDING, Plan, SeqStep
from octavo_engine.scheduling.sequence import Guesses, Sequence
from octavo_engine.scheduling.step_cost import StepCost

__all__ = ["Proposer", "Speculation"]

_FIRST_RATE = 0.6  # what is hoped of a sequence's guesses before there were any
_TRIALS = 8.0  # guesses after which the older half is forgotten, about
_HOPE = 0.002  # how much of the way back to hope a step without guesses brings: so they are tried again
_WORTH = 1.03  # guessing must promise this much more than not guessing
_IDLE = 32  # steps for which a sequence may run ahead before guessing is looked at again
_NEWEST = 0.1  # weight of the last measurement
_PLAIN_EVERY = 100  # steps after which one is made without guesses, to know its cost


class Proposer(Protocol):
    """Guesses next tokens: `limit` at most of a sequence and step, none in steps of more than max_batch sequences."""

    limit: int
    max_batch: int

    def propose(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """For each sequence at most so many tokens to follow its last; its pages reach that far. [] where none."""
        ...


class Speculation:
    def __init__(self, proposer: Proposer, tables: PageTables, clock: Callable[[], float] = time.perf_counter) -> None:
        self.cost = StepCost()
        self.num_drafted = self.num_accepted = 0  # tokens, since the start
        self._proposer, self._tables, self._clock = proposer, tables, clock
        self._guessing = 0.0  # seconds a guess that is asked of each sequence takes
        self._steps = 0

    def begin(self, seq: Sequence) -> None:
        """It has taken a slot."""
        if seq.group is None and not seq.request.looks_back:
            if seq.guesses is None:
                seq.guesses = Guesses(_FIRST_RATE)
            seq.guesses.pages, seq.guesses.num_computed, seq.guesses.asked = [], 0, False
            seq.waits_until = math.inf  # its last token must be known to guess the next

    def may_guess(self, rows: int) -> bool:
        """In a step of so many sequences that decode."""
        return rows <= self._proposer.max_batch

    @staticmethod
    def pause(decodes: list[Sequence]) -> None:
        """Nothing is guessed of them for a while: none has to wait for its last token because of that."""
        for seq in decodes:
            if seq.guesses is not None:
                seq.waits_until = seq.known_from

    def add(self, plan: Plan, decodes: list[Sequence], max_tokens: int) -> int:
        """Add guesses to the plan, which holds these decodes' steps, where that pays. Returns how many."""
        chosen: list[tuple[SeqStep, Sequence, int]] = []
        for seq, step in zip(decodes, plan.steps, strict=True):
            if step.tokens[0] == PENDING:
                self._rest(seq)
            elif seq.guesses is not None:
                room = min(seq.max_output - len(seq.output) - 1, seq.limit - seq.num_computed)
                if room > 0:
                    chosen.append((step, seq, room))
        if not chosen:
            return 0
        budget = (max_tokens - len(decodes)) // len(chosen)
        length = self.length([(seq, min(room, budget)) for _, seq, room in chosen], len(decodes))
        if not length:
            for _, seq, _ in chosen:
                self._rest(seq)
            return 0
        return self._draft(chosen, length)

    def _draft(self, chosen: list[tuple[SeqStep, Sequence, int]], length: int) -> int:
        tables, wanted, drafted = self._tables, [], 0
        for _, seq, room in chosen:
            seq.waits_until = math.inf  # how many of its tokens stand must be known before it goes on
            reach = tables.grow_for_guesses(seq, seq.num_computed + min(room, length))
            wanted.append((seq, max(0, reach - seq.num_computed)))
        known = all(seq.guesses is not None and seq.guesses.asked for seq, _ in wanted)
        start = self._clock()
        found = self._proposer.propose(wanted)
        if known:  # else a draft model has whole prompts to compute
            self._time(self._clock() - start, length)
        for (step, seq, _), guesses in zip(chosen, found, strict=True):
            if seq.guesses is not None:
                seq.guesses.asked = True
            tables.trim(seq, len(guesses))
            step.tokens = [*step.tokens, *guesses]
            step.drafts = len(guesses)
            drafted += len(guesses)
            if len(seq.pages) > seq.sent:
                step.page_offset = step.page_offset if step.pages else seq.sent
                step.pages = seq.pages[step.page_offset :]
                seq.sent = len(seq.pages)
        return drafted

    def _time(self, seconds: float, length: int) -> None:
        """Guessing took so long; now and then a draft model has something to catch up with as well."""
        each, known = seconds / length, self._guessing
        self._guessing += _NEWEST * (min(each, 3 * known) - known) if known else each

    def land(self, plan: Plan, decodes: list[Sequence], tokens: list[int]) -> None:
        """The plan drew these, and those that stand are output: what was guessed right is computed, and the pages
        behind are given back."""
        at = 0
        for seq, step in zip(decodes, plan.steps, strict=False):
            drawn = tokens[at : at + step.num_drawn]
            at += step.num_drawn
            if step.drafts and seq.finish_reason is None:
                self._learn(seq, step.drafts, sum(token >= 0 for token in drawn) - 1)
                seq.num_computed = seq.num_tokens - 1
                self._tables.trim(seq)
                self._tables.store(seq, step.start + 1, seq.num_computed)

    def length(self, wanted: list[tuple[Sequence, int]], rows: int) -> int:
        """How many tokens to guess of each, where so many are allowed, in a step of so many rows without guesses."""
        self._steps += 1
        if not self.may_guess(rows) or not self.cost.knows(rows) or self._steps % _PLAIN_EVERY == 0:
            return 0
        best, most = 0, rows / self.cost(rows) * _WORTH
        expected, guesses = float(rows), 0
        for length in range(1, min(self._proposer.limit, max(limit for _, limit in wanted)) + 1):
            for seq, limit in wanted:
                if limit >= length and seq.guesses is not None:
                    expected += seq.guesses.rate**length
                    guesses += 1
            value = expected / (self.cost(rows + guesses) + length * self._guessing)
            if value > most:
                best, most = length, value
        return best

    def _rest(self, seq: Sequence) -> None:
        """Nothing is guessed of it in a step: hope comes back. For a while it need not wait for its last token."""
        guesses = seq.guesses
        self._guessing *= 1 - _HOPE
        if guesses is not None:
            guesses.rate += _HOPE * (_FIRST_RATE - guesses.rate)
            guesses.idle = (guesses.idle + 1) % _IDLE
            seq.waits_until = seq.known_from if guesses.idle else math.inf

    def _learn(self, seq: Sequence, drafted: int, right: int) -> None:
        self.num_drafted += drafted
        self.num_accepted += right
        if seq.guesses is not None:
            tried = min(right + 1, drafted)
            weight = _TRIALS / (_TRIALS + tried)
            seq.guesses.rate = weight * seq.guesses.rate + (1 - weight) * right / tried
