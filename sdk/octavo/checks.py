"""What options are checked with: each raises InvalidOption, which names the field, its value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

from octavo.errors import InvalidOption

__all__ = ["choice", "flag", "number", "whole"]


# The largest whole number that crosses the wire: where a field has no other bound.
_LARGEST = (1 << 63) - 1


def whole(name: str, value: Any, low: int, high: int = _LARGEST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        endless = high == _LARGEST and not (isinstance(value, int) and value > high)
        raise InvalidOption(name, value, f"a whole number >= {low}" if endless else f"a whole number in {low}..{high}")


def number(name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> None:
    bad = isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value)
    if bad or value > high or value < low or (above and value == low) or math.isinf(value):
        left, right = "(" if above else "[", ")" if math.isinf(high) else "]"
        raise InvalidOption(name, value, f"a number in {left}{low}, {high}{right}")


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidOption(name, value, "one of " + ", ".join(map(repr, allowed)))


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidOption(name, value, "True or False")
