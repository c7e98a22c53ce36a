"""Beam search over the best next tokens of each beam: plain numbers, no sequences and no pages.

The rules are those of transformers' generate(num_beams=...), version 5: of all continuations the best
(1 + number of end tokens) * width are looked at, so that width of them go on whatever ends; what ends among the best
width is finished, with a score of sum of logprobs / length ** length_penalty, and the best width of those are kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["BeamSearch", "Finished", "Step", "Top"]

Top = Sequence[tuple[int, float]]
"""(token id, log probability), best first."""


class Step(NamedTuple):
    """A token and the step before it. rank: 1 for the best; top: the best ones, as many as were asked to be kept."""

    before: Step | None
    token: int
    logprob: float
    rank: int
    top: Top


@dataclass(frozen=True)
class Finished:
    """A text that has ended. total: the sum of its logprobs, of which `score` is made. token: the end token that ended
    it, None where its length did."""

    last: Step
    total: float
    score: float
    token: int | None

    @property
    def steps(self) -> list[Step]:
        """In the order of the text."""
        steps: list[Step] = []
        step: Step | None = self.last
        while step is not None:
            steps.append(step)
            step = step.before
        return steps[::-1]


class _Beam(NamedTuple):
    total: float
    last: Step | None


class BeamSearch:
    """`advance` takes what follows each beam, in the order that the last call gave them; at first there is one, empty.

    ends: tokens that end a text of at least min_tokens tokens, and may not be drawn before. max_tokens: of a text.
    num_kept: how many of the best next tokens each Step keeps.
    finished: best first, at most `width`; `done` tells when nothing will change any more.
    """

    def __init__(
        self,
        width: int,
        *,
        ends: frozenset[int],
        max_tokens: int,
        min_tokens: int = 0,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        num_kept: int = 0,
    ) -> None:
        self.width, self._ends = width, ends
        self.max_tokens, self._min_tokens = max_tokens, min_tokens
        self._penalty, self._early_stopping = length_penalty, early_stopping
        self._num_kept = num_kept
        self._beams = [_Beam(0.0, None)]
        self._length = 0
        self.finished: list[Finished] = []
        self.done = False

    @staticmethod
    def num_top(width: int, num_ends: int) -> int:
        """How many of the best next tokens `advance` needs of each beam: what it looks at, and ends not to be drawn."""
        return max(2, 1 + num_ends) * width + num_ends

    @property
    def num_beams(self) -> int:
        return len(self._beams)

    def advance(self, tops: Sequence[Top]) -> list[tuple[int, int]]:
        """The next tokens of each beam -> (index of the beam continued, token) of those that go on; empty when done."""
        self._length += 1
        best = self._best(tops)
        over = self._length >= self.max_tokens
        running: list[tuple[int, _Beam]] = []
        for place, (total, parent, rank) in enumerate(best):
            top = tops[parent]
            token, logprob = top[rank]
            last = Step(self._beams[parent].last, token, logprob, rank + 1, top[: self._num_kept])
            ended = token in self._ends
            if not ended and not over:
                if len(running) < self.width:
                    running.append((parent, _Beam(total, last)))
            elif place < self.width:
                self._finish(Finished(last, total, total / self._length**self._penalty, token if ended else None))
        self._beams = [beam for _, beam in running]
        full = len(self.finished) == self.width
        self.done = over or not running or (full and (self._early_stopping is True or not self._can_improve()))
        if self.done:
            return []
        return [(parent, beam.last.token) for parent, beam in running if beam.last is not None]

    def _best(self, tops: Sequence[Top]) -> list[tuple[float, int, int]]:
        """(total, beam, rank) of what is looked at: the best, the earlier beam and the smaller token where equal."""
        early = self._length <= self._min_tokens
        found = [
            (-(beam.total + logprob), index, token, rank)
            for index, (beam, top) in enumerate(zip(self._beams, tops, strict=True))
            for rank, (token, logprob) in enumerate(top)
            if not (early and token in self._ends)
        ]
        count = max(2, 1 + len(self._ends)) * self.width
        return [(-negative, index, rank) for negative, index, _, rank in heapq.nsmallest(count, found)]

    def _finish(self, text: Finished) -> None:
        self.finished.append(text)
        self.finished.sort(key=lambda one: -one.score)  # stable: of equals the earlier stays
        del self.finished[self.width :]

    def _can_improve(self) -> bool:
        """The best running beam could still end better than the worst that is kept, as far as is looked ahead."""
        longest = self._early_stopping == "never" and self._penalty > 0
        length = self.max_tokens if longest else self._length
        best: float = self._beams[0].total / length**self._penalty
        return best > self.finished[-1].score
