"""Perplexity of a text under a model, strided, through a client: what `octavo eval perplexity` measures.

The text is tokenised once, as a prompt. Windows of `context` tokens begin every `stride` tokens; a window scores those
of its tokens that no earlier one has, so every token but the text's first is scored exactly once, and after the first
window with at least context - stride tokens before it. Perplexity is exp of the mean negative log probability of the
scored tokens. This is the strided sliding window of Hugging Face's guide "Perplexity of fixed-length models" (labels of
-100 for what was scored before); llama.cpp's `llama-perplexity --ppl-stride` slides in the same way, while its default
cuts disjoint windows and scores the second half of each.

A figure means something only beside another one of the same text, tokenizer, context and stride.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import stdev

import anyio
import msgspec

from octavo.client import AsyncClient
from octavo.errors import InvalidOption, RequestFailed
from octavo.options import SamplingParams

__all__ = ["Perplexity", "Rise", "Window", "perplexity", "rise", "windows"]

_SCORE = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
_CONTEXT = 1024


class Window(msgspec.Struct, frozen=True):
    """Tokens begin to end of the text are read, and those from `scored` on are scored."""

    begin: int
    end: int
    scored: int


class Perplexity(msgspec.Struct, frozen=True):
    """log probabilities (natural) of the scored tokens in the text's order; tokens read, repeated ones included;
    wall seconds."""

    logprobs: tuple[float, ...]
    tokens_read: int
    seconds: float
    context: int
    stride: int

    @property
    def nats(self) -> float:
        """Mean negative log probability of a token."""
        return -math.fsum(self.logprobs) / len(self.logprobs)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """bytes_per_token: of the whole text in UTF-8, which the scored tokens are taken to share."""
        return self.nats / math.log(2) / bytes_per_token


class Rise(msgspec.Struct, frozen=True):
    """Relative rise of the perplexity and its standard error, from the differences token by token; 0.01 is 1 %."""

    value: float
    error: float


def rise(base: Perplexity, other: Perplexity) -> Rise:
    """How much worse `other` is than `base` on the same tokens.

    The error takes tokens as independent; it is far under that of either perplexity, whose tokens are the same ones.
    """
    differences = [b - o for b, o in zip(base.logprobs, other.logprobs, strict=True)]
    ratio = math.exp(math.fsum(differences) / len(differences))
    spread = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return Rise(ratio - 1, ratio * spread)


def windows(count: int, context: int, stride: int) -> list[Window]:
    """The windows over `count` tokens. The last one may be shorter."""
    made: list[Window] = []
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + context, count)
        if max(scored, begin + 1) < end:
            made.append(Window(begin, end, max(scored, begin + 1)))
        scored = end
        if end == count:
            break
    return made


async def perplexity(
    client: AsyncClient,
    tokens: Sequence[int],
    *,
    context: int | None = None,
    stride: int | None = None,
    at_once: int = 16,
    on_window: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Score `tokens` (a tokenised text; see AsyncClient.tokenize) with an open client.

    context: tokens a window; None: 1024, or what the engine's max_model_len allows. stride: None: half of context; with
    stride == context the first token of each window goes unscored. at_once: windows in flight, which the engine
    batches. on_window: called with (windows done, windows in all).

    Raises InvalidOption for a context or stride that can't be, or a text of less than two tokens.
    """
    longest = client.options.max_model_len
    if context is None:
        context = _CONTEXT if longest is None else min(_CONTEXT, longest - 1)
    stride = max(1, context // 2) if stride is None else stride
    _check(context, stride, longest, len(tokens))
    todo = windows(len(tokens), context, stride)
    found: dict[int, list[float]] = {}
    places = anyio.CapacityLimiter(at_once)
    started = time.perf_counter()

    async def score(window: Window) -> None:
        async with places:
            done = await client.generate(tokens[window.begin : window.end], _SCORE)
        if done.prompt_logprobs is None:
            raise RequestFailed("the engine gave no prompt_logprobs, which perplexity is made of")
        entries = done.prompt_logprobs[window.scored - window.begin :]
        found[window.begin] = [entry.logprob for entry in entries if entry is not None]
        if on_window is not None:
            on_window(len(found), len(todo))

    await _each(todo, score)
    logprobs = tuple(logprob for begin in sorted(found) for logprob in found[begin])
    read = sum(window.end - window.begin for window in todo)
    return Perplexity(logprobs, read, time.perf_counter() - started, context, stride)


def _check(context: int, stride: int, longest: int | None, count: int) -> None:
    if context < 2 or (longest is not None and context > longest - 1):
        most = "" if longest is None else f", at most {longest - 1} with max_model_len={longest}"
        raise InvalidOption("context", context, f"at least 2{most}")
    if not 1 <= stride <= context:
        raise InvalidOption("stride", stride, f"1 to context={context}")
    if count < 2:
        raise InvalidOption("text", f"{count} tokens", "at least two tokens: the first one is never scored")


async def _each(todo: Sequence[Window], score: Callable[[Window], Awaitable[None]]) -> None:
    """Score all at once. The first error comes out as it is, not in a task group's wrapping."""
    failures: list[Exception] = []

    async def one(window: Window) -> None:
        try:
            await score(window)
        except Exception as error:
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for window in todo:
            tasks.start_soon(one, window)
    if failures:
        raise failures[0]
