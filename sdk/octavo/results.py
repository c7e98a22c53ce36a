"""What a caller gets back: Completion, Delta and their parts. Frozen; token ids are tuples."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator

import msgspec

from octavo.wire import TokenLogprob, Usage

__all__ = ["Completion", "CompletionChoice", "Delta", "Embeddings", "Score", "TokenLogprob", "Usage"]


class Delta(msgspec.Struct, frozen=True, gc=False):
    """New output of one choice of a stream.

    Everything that came since the reader last asked, so one delta may carry several tokens. text can be empty while a
    character is incomplete. finish_reason ("stop", "length" or "abort") is set on the last delta of each choice, and
    stop_reason says what stopped it: the stop string, the stop token id, or None for the end-of-sequence token.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One of the n answers. logprobs (an entry a token) and their sum cumulative_logprob where they were asked for.

    score: of a beam search (see BeamParams.length_penalty), which always gives cumulative_logprob too.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    cumulative_logprob: float | None = None
    score: float | None = None


class Completion(msgspec.Struct, frozen=True):
    """The whole answer to one request; text, token_ids and finish_reason are those of the first choice.

    prompt_logprobs: one entry a prompt token, the first of them None, where they were asked for.
    """

    choices: tuple[CompletionChoice, ...]
    prompt_token_ids: tuple[int, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason


class Embeddings(msgspec.Struct, frozen=True):
    """Vectors in the order of the texts, each an array("f"): float32, a buffer that numpy.asarray and torch.frombuffer
    read without a copy. Iterating gives the vectors. usage: of all texts; the longest times."""

    vectors: tuple[array[float], ...]
    usage: Usage

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[array[float]]:
        return iter(self.vectors)

    def __getitem__(self, index: int) -> array[float]:
        return self.vectors[index]


class Score(msgspec.Struct, frozen=True):
    """How likely a continuation is: its tokens, and the log probability of each given all before it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """Of the whole continuation: the sum."""
        return math.fsum(self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """A token: what compares continuations of different lengths."""
        return self.logprob / len(self.logprobs)
