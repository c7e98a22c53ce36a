"""What a tool parser finds in a model's text, in order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Arguments", "Call", "Event", "Text", "merged"]


class Text(NamedTuple):
    """Text that is no call."""

    text: str


class Call(NamedTuple):
    """A call begins; calls count from 0."""

    number: int
    name: str


class Arguments(NamedTuple):
    """More of a call's arguments, which are JSON when they have all come (unless the model's were not)."""

    number: int
    text: str


Event = Text | Call | Arguments


def merged(events: Iterable[Event]) -> list[Event]:
    """With neighbours of a kind put together."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, Text) and isinstance(last, Text):
            out[-1] = Text(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and last.number == event.number:
            out[-1] = Arguments(event.number, last.text + event.text)
        elif isinstance(event, Call) or event.text:
            out.append(event)
    return out
