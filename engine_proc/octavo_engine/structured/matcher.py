"""How far one sequence has come in its grammar, and which tokens may follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import llguidance

__all__ = ["GrammarFailed", "Matcher", "error_text"]


class GrammarFailed(Exception):
    """The grammar was too much for the library at the place that a sequence has come to."""


class Matcher:
    """A function of the tokens pushed so far, however they came: a sequence that is resumed continues as it would have.

    matcher: llguidance's, owned from here on. It never raises for what a grammar holds: it has an `error` from then on.
    """

    __slots__ = ("__weakref__", "_matcher")

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> Matcher:
        """Another sequence that has come as far. What was computed about the grammar's states stays shared."""
        return Matcher(self._matcher.deep_copy())

    @property
    def error(self) -> str | None:
        """Why it can't go on."""
        return self._matcher.get_error() if self._matcher.is_error() else None

    @property
    def only_ends(self) -> bool:
        """Nothing can follow but an end-of-sequence token."""
        return self._matcher.is_stopped()

    def push(self, tokens: Sequence[int]) -> None:
        """The sequence goes on with these, each allowed by the mask before it. Raises GrammarFailed."""
        if tokens and not self._matcher.consume_tokens(list(tokens)):
            raise self._failed()

    def bits(self) -> bytes:
        """Which tokens may come next, a bit each, the first in the lowest. 20 to 50 us as a rule."""
        return self._matcher.compute_bitmask()

    def fill(self, row: NDArray[np.int32]) -> None:
        """The same into a row of 32 bits a word, of any length, without tokens beyond the tokenizer's.

        Raises GrammarFailed.
        """
        bits = np.frombuffer(self.bits(), "<i4")
        if self._matcher.is_error():
            raise self._failed()
        size = min(len(bits), len(row))
        row[:size] = bits[:size]
        row[size:] = 0

    def _failed(self) -> GrammarFailed:
        return GrammarFailed(f"structured: {error_text(self.error or 'a token does not fit')}")


def error_text(error: str) -> str:
    """The library's words, without its marks for what it leaves out."""
    return error.replace("<non-verbose/>", "").strip()
