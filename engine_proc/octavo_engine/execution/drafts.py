"""Tokens drawn behind guesses (SeqStep.drafts): which of them stand.

A token is drawn with random numbers that belong to its place in the output, from logits that do not depend on what else
is in the batch. So what is drawn behind guesses that were right is what would have been drawn one token a step: the
output is the same, token for token, sampled or not (a coupling stricter than arXiv 2211.17192's, which only keeps the
distribution).
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.wire import TokenLogprob
from octavo_engine.execution.sampler import nothing_allowed
from octavo_engine.scheduling.plan import REJECTED, SeqStep

__all__ = ["ahead_of", "reject", "standing"]


def ahead_of(seqs: Sequence[SeqStep]) -> list[list[int]]:
    """For each token that a step draws, the guesses that it takes for output already."""
    return [seq.tokens[len(seq.tokens) - seq.drafts :][:i] if seq.drafts else [] for seq in seqs for i in _drawn(seq)]


def _drawn(seq: SeqStep) -> range:
    return range(seq.num_drawn)


def reject(
    seqs: list[SeqStep], tokens: list[int], logprobs: list[TokenLogprob | None]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """The same with REJECTED, without logprobs, behind each first wrong guess. tokens: -1 where none could be drawn.

    Raises NothingAllowed for such a one that would stand.
    """
    tokens, logprobs = tokens.copy(), logprobs.copy()
    at = 0
    for seq in seqs:
        guesses = seq.tokens[len(seq.tokens) - seq.drafts :]
        right = 0
        while right < seq.drafts and tokens[at + right] == guesses[right]:
            right += 1
        stop = at + seq.num_drawn
        behind = at + right + 1 if seq.drafts else stop
        for i in range(at, behind):
            if tokens[i] < 0:
                raise nothing_allowed(seq.samplers[0 if seq.drafts else i - at])
        for i in range(behind, stop):
            tokens[i], logprobs[i] = REJECTED, None
        at = stop
    return tokens, logprobs


def standing(slots: list[int], tokens: list[int]) -> tuple[list[int], list[int]]:
    """Without those that were rejected."""
    if REJECTED not in tokens:
        return slots, tokens
    kept = [i for i, token in enumerate(tokens) if token != REJECTED]
    return [slots[i] for i in kept], [tokens[i] for i in kept]
