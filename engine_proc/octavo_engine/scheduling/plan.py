"""What the scheduler tells the runner: plain data, one Plan a step.

A Plan can be tested without torch, logged, and broadcast to tensor-parallel workers. A sequence is known to the
runner by its slot (0 .. max_num_seqs - 1) from its SeqStart until its slot stands in `ends`. Within a plan the runner
applies, in this order: ends, starts, copies, seqs; and plans one after the other, also where they are submitted ahead.
"""

from __future__ import annotations

import msgspec

from octavo.options import SamplingParams

__all__ = ["PENDING", "REJECTED", "Again", "Plan", "SeqStart", "SeqStep"]

PENDING = -1
"""In SeqStep.tokens, alone: the token that the slot draws in the step before, which has not been collected."""

REJECTED = -1
"""Among the tokens that a step drew: one drawn behind a draft that was wrong."""


class SeqStart(msgspec.Struct, array_like=True):
    """A sequence takes a slot. Penalties need its history: `prompt` and the `output` so far (after preemption).

    eos_ids must not be drawn while the output is shorter than params.min_tokens (end-of-sequence unless ignored, and
    params.stop_token_ids). bad_words: token sequences whose last token must not follow the others. adapter: number of
    the LoRA adapter that its tokens are run with, -1 for none.
    """

    slot: int
    params: SamplingParams
    seed: int  # 64-bit, resolved, different for each choice of a request
    prompt: list[int]
    output: list[int]
    eos_ids: list[int] = []
    bad_words: list[list[int]] = []
    adapter: int = -1


class SeqStep(msgspec.Struct, array_like=True, gc=False):
    """Run `tokens` of one sequence at positions start, start + 1, ...

    pages: page ids to store in the slot's page table from entry `page_offset` on: what is new since the slot's last
    step. samplers: the slots that draw a token from the logits of the last of `tokens`; empty for a chunk that does
    not reach the end; several when choices fork here. prompt_logprobs k >= 0: the logprobs (and k best) of tokens[1:]
    are wanted and, if the chunk doesn't end the prompt, of `next_token`; -1: none. regime: the length that the
    sequence's positions are rotated for, the same from its SeqStart on; 0: any. pooling: "mean" or "last" where the
    hidden states of all of `tokens`, or of the last, are wanted for a vector, which is complete where `pooled`.
    drafts: so many of `tokens`, the last ones, are guesses. The one sampler then draws drafts + 1 tokens: from the
    logits before each guess and of the last one, as if the guesses before were its output; REJECTED behind a wrong one.
    """

    slot: int
    start: int
    tokens: list[int]
    page_offset: int
    pages: list[int]
    samplers: list[int]
    prompt_logprobs: int = -1
    next_token: int = -1
    regime: int = 0
    pooling: str = ""
    pooled: bool = False
    drafts: int = 0

    @property
    def num_drawn(self) -> int:
        """Tokens that the step draws here."""
        return len(self.samplers) + self.drafts


# Shared by many steps, and changed by nobody: lists made anew would wake the garbage collector.
_PENDING: list[int] = [PENDING]
_NOTHING: list[int] = []


class Again(msgspec.Struct, array_like=True, gc=False):
    """Sequences that decode on, one token each and drawn by their own slots, as so many steps (`further`) before.

    tokens: of each sequence the one that is run; empty where all are PENDING. paged: (place in the plan, page_offset,
    pages), as in SeqStep, of those that got pages; who enters a page is among them.
    """

    further: int
    tokens: list[int]
    paged: list[tuple[int, int, list[int]]]

    def of(self, steps: list[SeqStep]) -> list[SeqStep]:
        """What the sequences do that did `steps` then."""
        tokens = [[token] for token in self.tokens] or [_PENDING] * len(steps)
        found = [
            SeqStep(step.slot, step.start + self.further, own, 0, _NOTHING, step.samplers, regime=step.regime)
            for step, own in zip(steps, tokens, strict=True)
        ]
        for place, offset, pages in self.paged:
            found[place].page_offset, found[place].pages = offset, pages
        return found


class Plan(msgspec.Struct, array_like=True):
    """One step. copies: (source page, destination page), for copy-on-write. steps: of each sequence; where some only go
    on, theirs of an earlier plan, the very list, `again` says what is new, and `more` what others do, behind them."""

    step: int
    ends: list[int]
    starts: list[SeqStart]
    copies: list[tuple[int, int]]
    steps: list[SeqStep]
    again: Again | None = None
    more: list[SeqStep] = []

    @property
    def seqs(self) -> list[SeqStep]:
        """What each sequence does."""
        return self.steps if self.again is None else self.again.of(self.steps) + self.more

    @property
    def kinds(self) -> list[SeqStep]:
        """The same, but for what is another with every step that a sequence goes on: start, tokens, pages."""
        return self.steps + self.more if self.more else self.steps

    @property
    def num_tokens(self) -> int:
        return sum(len(step.tokens) for step in self.kinds)

    def add(self, step: SeqStep) -> None:
        """One more sequence."""
        (self.steps if self.again is None else self.more).append(step)

    def write_out(self) -> list[SeqStep]:
        """Have `steps` say all, to be changed."""
        self.steps, self.again, self.more = self.seqs, None, []
        return self.steps
