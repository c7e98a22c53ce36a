"""One sequence's changes to its logits as the sparse entries that Ops.sample applies: penalties, biases, bans."""

from __future__ import annotations

import math
from collections import Counter
from copy import copy

import numpy as np
from numpy.typing import NDArray

from octavo_engine.scheduling.plan import SeqStart

__all__ = ["Adjustments"]

_FORBIDDEN = -math.inf


class Adjustments:
    """The entries (id, scale, add) of one sequence, each id once, kept up to date as tokens are drawn.

    scale is the repetition penalty (arXiv 1909.05858) of ids in prompt or output; add is logit bias - presence penalty
    - frequency penalty * occurrences in the output, or -inf for an id that must not be drawn now: the end-of-sequence
    ids before min_tokens, and the last token of a bad word whose others are the tail of prompt + output.
    An entry is a function of its id's history alone, never of the order of updates, so a resumed sequence has the same.
    """

    __slots__ = (
        "_bias",
        "_counts",
        "_end_ids",
        "_forbidden",
        "_frequency",
        "_index",
        "_min_tokens",
        "_num_output",
        "_presence",
        "_repetition",
        "_tail",
        "_tail_length",
        "_words",
        "add",
        "ids",
        "scale",
        "size",
    )

    def __init__(self, start: SeqStart) -> None:
        params = start.params
        self._presence, self._frequency = params.presence_penalty, params.frequency_penalty
        self._repetition = params.repetition_penalty
        self._bias = dict(params.logit_bias)
        for word in start.bad_words:
            if len(word) == 1:
                self._bias[word[0]] = _FORBIDDEN
        self._words: dict[int, list[list[int]]] = {}  # by the token that must be the last one drawn: there may be many
        for word in start.bad_words:
            if len(word) > 1:
                self._words.setdefault(word[-2], []).append(word)
        self._tail_length = max((len(word) - 1 for word in start.bad_words), default=0)
        self._tail = (start.prompt + start.output)[-self._tail_length :] if self._words else []
        self._min_tokens, self._end_ids = params.min_tokens, start.eos_ids
        self._num_output = len(start.output)
        self._counts = Counter(start.output)
        self._forbidden = self._forbidden_now()

        repeated = set(start.prompt) | self._counts.keys() if self._repetition != 1 else set()
        self._index = {token: i for i, token in enumerate(repeated)}
        self.size = len(repeated)  # entries in use of the arrays, which grow by doubling
        self.ids: NDArray[np.int32] = np.zeros(self.size + 64, np.int32)
        self.scale: NDArray[np.float32] = np.ones(self.size + 64, np.float32)
        self.add: NDArray[np.float32] = np.zeros(self.size + 64, np.float32)
        self.ids[: self.size] = list(repeated)
        self.scale[: self.size] = self._repetition
        counted = self._counts.keys() if self._presence or self._frequency else set()
        for token in self._bias.keys() | self._forbidden | counted:
            self._set_add(token)

    @staticmethod
    def needed(start: SeqStart) -> bool:
        """Whether this sequence's logits may ever need changing."""
        params = start.params
        return bool(
            params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
            or params.logit_bias
            or start.bad_words
            or (start.eos_ids and len(start.output) < params.min_tokens)
        )

    def after(self, tokens: list[int]) -> Adjustments:
        """What these will be once `tokens` were drawn."""
        later = copy(self)
        later._index, later._counts = self._index.copy(), self._counts.copy()
        later.ids, later.scale, later.add = self.ids.copy(), self.scale.copy(), self.add.copy()
        for token in tokens:
            later.push(token)
        return later

    def push(self, token: int) -> None:
        """`token` was drawn."""
        self._num_output += 1
        self._counts[token] += 1
        if self._repetition != 1:
            i = self._entry(token)  # first: it may replace the arrays
            self.scale[i] = self._repetition
        if self._presence or self._frequency:
            self._set_add(token)
        if self._words:
            self._tail = [*self._tail, token][-self._tail_length :]
        if self._words or self._forbidden:
            self._forbid_now()

    def allow_ends(self) -> None:
        """Nothing else can follow: min_tokens is not waited for."""
        self._min_tokens = 0
        self._forbid_now()

    def _forbid_now(self) -> None:
        before, self._forbidden = self._forbidden, self._forbidden_now()
        for changed in before ^ self._forbidden:
            self._set_add(changed)

    def _forbidden_now(self) -> set[int]:
        ids = set(self._end_ids) if self._num_output < self._min_tokens else set()
        for word in self._words.get(self._tail[-1], ()) if self._tail else ():
            others = word[:-1]
            if self._tail[-len(others) :] == others:
                ids.add(word[-1])
        return ids

    def _entry(self, token: int) -> int:
        """The index of the token's entry, a neutral one if it had none."""
        i = self._index.get(token)
        if i is None:
            i = self._index[token] = self.size
            if i == len(self.ids):
                for name in ("ids", "scale", "add"):
                    setattr(self, name, np.resize(getattr(self, name), 2 * i))
            self.ids[i], self.scale[i], self.add[i] = token, 1, 0
            self.size += 1
        return i

    def _set_add(self, token: int) -> None:
        add = self._bias.get(token, 0.0)
        count = self._counts[token]
        if count:
            add -= self._presence + self._frequency * count
        i = self._entry(token)  # first: it may replace the arrays
        self.add[i] = _FORBIDDEN if token in self._forbidden else add
