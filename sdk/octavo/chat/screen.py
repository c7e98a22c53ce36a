"""What a chat needs of a terminal."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Screen", "visible"]


class Screen(Protocol):
    async def read(self) -> str | None:
        """What was written, of one or several lines; "" after Ctrl-C, None at Ctrl-D."""

    def echo(self, text: str) -> None:
        """What would have been written."""

    def begin(self) -> None:
        """An answer begins."""

    def add(self, text: str) -> None:
        """More of the answer."""

    def end(self) -> None:
        """The answer has ended, however it did."""

    def tell(self, text: str) -> None:
        """A line or a list that is no part of the conversation."""

    def fail(self, text: str) -> None:
        """What went wrong."""


# Without them a model could move the cursor, write to the clipboard or rename the window.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def visible(text: str) -> str:
    """The text without control characters."""
    return text.translate(_CONTROLS)
