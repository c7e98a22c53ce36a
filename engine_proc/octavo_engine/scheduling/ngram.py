"""Guesses without a model ("prompt lookup"): what followed the last tokens when they stood in the text before."""

from __future__ import annotations

from array import array

from octavo_engine.scheduling.sequence import Sequence

__all__ = ["NGramProposer"]

_BYTES = 4  # a token's
_WINDOW = _BYTES << 15  # looked through: about 0.1 ms


class NGramProposer:
    """Looks for the longest of the sequence's last `longest` .. `shortest` tokens, and there for the latest place."""

    def __init__(self, limit: int, shortest: int, longest: int, max_batch: int) -> None:
        self.limit, self.max_batch = limit, max_batch
        self._shortest, self._longest = shortest, longest

    def propose(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._look_up(_history(seq), limit) if limit else [] for seq, limit in wanted]

    def _look_up(self, history: bytearray, limit: int) -> list[int]:
        num_tokens = len(history) // _BYTES
        for length in range(min(self._longest, num_tokens - 1), self._shortest - 1, -1):
            size, end = length * _BYTES, len(history) - _BYTES  # not the last tokens themselves
            tail = history[-size:]
            while (at := history.rfind(tail, max(0, end - _WINDOW), end)) >= 0:
                if at % _BYTES == 0:
                    return _following(history, at + size, limit)
                end = at + size - 1  # it began within a token
        return []


def _history(seq: Sequence) -> bytearray:
    assert seq.guesses is not None
    history = seq.guesses.history
    known = len(history) // _BYTES
    if known < seq.num_tokens:
        history += seq.token_bytes(known, seq.num_tokens)
    return history


def _following(history: bytearray, start: int, limit: int) -> list[int]:
    """The tokens from `start` on; behind the last one they repeat."""
    found = array("i", bytes(history[start : start + limit * _BYTES])).tolist()
    period = len(found)
    while len(found) < limit:
        found.append(found[-period])
    return found
