"""SamplingParams.best_of: more answers are drawn than are returned, and the likeliest kept."""

from __future__ import annotations

from octavo.options import SamplingParams, replace
from octavo.results import Completion, CompletionChoice

__all__ = ["best", "drawn"]


def drawn(params: SamplingParams) -> SamplingParams:
    """What is asked of the engine, which knows n alone: all of them, with the logprobs to choose by."""
    logprobs = 0 if params.logprobs is None else params.logprobs
    asked: SamplingParams = replace(params, n=params.best_of, best_of=None, logprobs=logprobs)
    return asked


def best(done: Completion, params: SamplingParams) -> Completion:
    """The params.n choices of the highest mean logprob a token, best first; usage counts all that were drawn."""

    def mean(choice: CompletionChoice) -> float:
        return (choice.cumulative_logprob or 0.0) / max(1, len(choice.token_ids))

    kept = sorted(done.choices, key=mean, reverse=True)[: params.n]
    if params.logprobs is None:
        kept = [replace(choice, logprobs=None, cumulative_logprob=None) for choice in kept]
    return Completion(
        tuple(replace(choice, index=i) for i, choice in enumerate(kept)),
        done.prompt_token_ids,
        done.usage,
        done.prompt_logprobs,
    )
