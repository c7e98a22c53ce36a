"""Our end of a pseudo-terminal, with a screen: what somebody would see."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import pyte

__all__ = ["HEIGHT", "WIDTH", "Terminal"]

WIDTH, HEIGHT = 100, 40


class Terminal:
    """fd: of the pseudo-terminal's own side. Answers the program's questions, as for the cursor, as terminals do."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._screen = pyte.Screen(WIDTH, HEIGHT)
        self._screen.write_process_input = lambda data: os.write(fd, data.encode())
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        """The lines of the screen, less what is blank at their ends."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def bold(self, text: str) -> bool:
        """Whether the last such text on the screen is bold."""
        row, line = next((i, line) for i, line in reversed([*enumerate(self._screen.display)]) if text in line)
        return bool(self._screen.buffer[row][line.index(text)].bold)

    def type(self, keys: str, *, expect: str = "") -> None:
        os.write(self._fd, keys.encode())
        if expect:
            self.expect(expect)

    def expect(self, text: str) -> None:
        self._wait(lambda: text in self.text, text)

    def prompt(self) -> None:
        """Wait for an empty prompt as the last line."""
        self._wait(lambda: self.text.rpartition("\n")[2] == ">", "a prompt")

    def _wait(self, come: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 20
        while not come():
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{what!r} did not come; on the screen:\n{self.text}"
            self._stream.feed(os.read(self._fd, 4096))
