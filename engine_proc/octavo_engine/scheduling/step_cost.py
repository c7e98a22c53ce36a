"""What a decode step costs by its number of rows, as measured on this machine and model."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["StepCost"]

_NEWEST = 0.15  # weight of a measurement among those of the same number of rows
_OUTLIER = 3.0  # times what was known: more is taken for a disturbance, and counts as this
_UNKNOWN_ROW = 0.1  # of a step: taken for a further row where nothing is known


class StepCost:
    """Seconds of a step by its rows: a running mean each, straight lines between them."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._seconds: dict[int, float] = {}

    def add(self, rows: int, seconds: float) -> None:
        before = self._seconds.get(rows)
        if before is None:
            self._rows.insert(bisect_left(self._rows, rows), rows)
            self._seconds[rows] = seconds
        else:
            self._seconds[rows] = before + _NEWEST * (min(seconds, _OUTLIER * before) - before)

    def knows(self, rows: int) -> bool:
        return rows in self._seconds

    def __call__(self, rows: int) -> float:
        """Raises IndexError when nothing was measured."""
        place = bisect_left(self._rows, rows)
        if place < len(self._rows) and self._rows[place] == rows:
            return self._seconds[rows]
        if place == 0:
            return self._seconds[self._rows[0]]
        low = self._rows[place - 1]
        if place == len(self._rows):
            return self._seconds[low] * (1 + _UNKNOWN_ROW * (rows - low))
        high = self._rows[place]
        share = (rows - low) / (high - low)
        return self._seconds[low] * (1 - share) + self._seconds[high] * share
