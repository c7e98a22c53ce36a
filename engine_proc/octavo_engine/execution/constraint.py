"""A sequence whose output must fit a grammar: its matcher, and its row of the sampler's masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo_engine.structured import Matcher

__all__ = ["Constraint"]


class Constraint:
    """`row` holds which tokens may be drawn next, from construction on and after every push.

    output: what was drawn before (a resumed sequence), eos_ids: what ends it. allowed: bits to which the grammar's are
    narrowed. Raises GrammarFailed where the grammar is too much for the library.
    """

    __slots__ = ("_allowed", "_eos_ids", "_matcher", "row")

    def __init__(
        self,
        matcher: Matcher,
        row: NDArray[np.int32],
        allowed: NDArray[np.int32] | None,
        eos_ids: frozenset[int],
        output: list[int],
    ) -> None:
        self._matcher, self.row, self._allowed, self._eos_ids = matcher, row, allowed, eos_ids
        matcher.push(output)
        self._fill()

    @property
    def only_ends(self) -> bool:
        """Nothing can follow but what ends the output."""
        return self._matcher.only_ends

    def push(self, token: int) -> None:
        """`token` was drawn. Raises GrammarFailed."""
        if token in self._eos_ids and self._matcher.only_ends:
            return
        self._matcher.push([token])
        self._fill()

    def _fill(self) -> None:
        self._matcher.fill(self.row)
        if self._allowed is not None:
            self.row &= self._allowed
