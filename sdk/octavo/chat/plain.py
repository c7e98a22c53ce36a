"""A chat without any library: what is said as it is, everything else on stderr."""

from __future__ import annotations

import sys

import anyio

from octavo.chat.answer import interruptible
from octavo.chat.screen import visible

__all__ = ["PlainScreen", "joined"]

_FENCE = '"""'


def joined(lines: list[str]) -> str | None:
    '''The lines as one text, or None where more of them are wanted: within """ ... """, or after a backslash.'''
    first = lines[0].lstrip()
    if first.startswith(_FENCE):
        text = "\n".join([first[len(_FENCE) :], *lines[1:]])
        end = text.find(_FENCE)
        return None if end < 0 else text[:end].strip("\n")
    if lines[-1].endswith("\\"):
        return None
    return "\n".join(line.removesuffix("\\") for line in lines)


class PlainScreen:
    """raw: the answer is for a program to read, so its control characters are kept."""

    def __init__(self, *, raw: bool = False) -> None:
        self._clean = (lambda text: text) if raw else visible

    async def read(self) -> str | None:
        lines: list[str] = []
        while True:
            line = await _read_line("... " if lines else "> ")
            if not line:
                if line is None:
                    print()
                return line
            lines.append(line.rstrip("\r\n"))
            whole = joined(lines)
            if whole is not None:
                return whole

    def echo(self, text: str) -> None:
        print(f"> {text}")

    def begin(self) -> None:
        pass

    def add(self, text: str) -> None:
        print(self._clean(text), end="", flush=True)

    def end(self) -> None:
        print(flush=True)

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def fail(self, text: str) -> None:
        self.tell(f"octavo: {text}")


async def _read_line(mark: str) -> str | None:
    """A line from the terminal, "" at Ctrl-C, None at Ctrl-D. The event loop goes on meanwhile."""
    line: str | None = ""
    async with interruptible():
        print(mark, end="", flush=True)
        # A terminal hands out one line a read, so nothing stays behind in Python's buffer.
        await anyio.wait_readable(sys.stdin)
        line = sys.stdin.readline() or None
    if line == "":
        print("\n(Ctrl-D ends the chat)", file=sys.stderr)
    return line
