"""Guesses by a smaller model, which draws with the same random numbers as the model itself will.

Its KV cache has a page for each of the model's, and uses the same page tables; but it is brought up to date only for
sequences that are guessed for, so what it holds is known by sequence (Guesses.pages, Guesses.num_computed) and never
taken from the prefix cache. A wrong guess costs time, nothing else.
"""

from __future__ import annotations

import logging
from itertools import takewhile

from octavo.options import SamplingParams, replace
from octavo_engine.execution.errors import DeviceLost
from octavo_engine.execution.runner import Runner
from octavo_engine.scheduling.plan import Plan, SeqStart, SeqStep
from octavo_engine.scheduling.sequence import Sequence

__all__ = ["DraftModel"]

log = logging.getLogger("octavo.engine")


class DraftModel:
    """A scheduling.speculation.Proposer. runner: of the smaller model, with the pages and slots of the model's.

    max_position: tokens that the smaller model has positions for; chunk: tokens that it computes in a step, at most.
    """

    def __init__(
        self, runner: Runner, *, limit: int, max_batch: int, page_size: int, max_position: int, chunk: int
    ) -> None:
        self.limit, self.max_batch = limit, max_batch
        self._runner, self._page_size = runner, page_size
        self._max_position, self._chunk = max_position, chunk
        self._steps = 0

    def propose(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Raises DeviceLost; what fails otherwise gives no guesses."""
        try:
            found = self._propose({seq: limit for seq, limit in wanted if self._can(seq, limit)})
        except DeviceLost:
            raise
        except Exception:
            log.exception("the draft model failed; a step goes without guesses")
            found = {}
        return [found.get(seq, []) for seq, _ in wanted]

    def _can(self, seq: Sequence, limit: int) -> bool:
        return limit > 0 and seq.num_tokens + limit <= self._max_position

    def _propose(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        guesses: dict[Sequence, list[int]] = {}
        starts, steps, left = [], [], self._chunk
        for seq in wanted:
            step = self._catch_up(seq, left)
            left -= len(step.tokens)
            steps.append(step)
            starts.append(_start(seq))
            if step.samplers:
                guesses[seq] = []
            if not left:
                break
        while steps:
            drawn = self._run(Plan(self._steps, [], starts, [], steps))
            for seq, token in zip([s for s in guesses if len(guesses[s]) < wanted[s]], drawn, strict=True):
                guesses[seq].append(token)
            starts = []
            steps = [
                SeqStep(seq.slot, seq.num_tokens + len(found) - 1, [found[-1]], 0, [], [seq.slot])
                for seq, found in guesses.items()
                if len(found) < wanted[seq]
            ]
        return guesses

    def _run(self, plan: Plan) -> list[int]:
        self._steps += 1
        return self._runner.collect(self._runner.submit(plan)).tokens

    def _catch_up(self, seq: Sequence, most: int) -> SeqStep:
        """What the cache lacks of the sequence, `most` tokens at most; a token is drawn where that is all."""
        state = seq.guesses
        assert state is not None
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(state.pages, seq.pages, strict=False)))
        # The last token is computed again where nothing is lacking: its logits are needed.
        start = min(state.num_computed, same * self._page_size, seq.num_tokens - 1)
        stop = min(seq.num_tokens, start + most)
        state.pages, state.num_computed = seq.pages.copy(), stop
        samplers = [seq.slot] if stop == seq.num_tokens else []
        return SeqStep(seq.slot, start, seq.tokens(start, stop), 0, seq.pages.copy(), samplers)


def _start(seq: Sequence) -> SeqStart:
    start = seq.start()
    params: SamplingParams = replace(start.params, logprobs=None, prompt_logprobs=None)
    start.params, start.adapter = params, -1
    return start
