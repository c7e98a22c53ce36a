"""A chat with rich and prompt_toolkit (extra [chat]): markdown as it streams in, a line editor with history.

What is complete of an answer is printed for good, paragraph by paragraph, so that it scrolls as any output; only the
last, growing paragraph is drawn anew, and no more of it than fits the window.
"""

from __future__ import annotations

import re
import time

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import SegmentLines
from rich.text import Text

from octavo.chat.commands import COMMANDS
from octavo.chat.plain import joined
from octavo.chat.screen import visible

__all__ = ["RichScreen", "settled"]

_FRAME = 1 / 15  # seconds between two drawings
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


def settled(text: str) -> int:
    """How many characters of a growing markdown text belong to blocks that nothing that follows can change."""
    end = 0
    for gap in re.finditer(r"\n[ \t]*\n(?=\S)", text):
        fences = _FENCE.findall(text[: gap.start()])
        # An even number of fences: none is open. What is indented behind a gap still belongs to a list.
        if len(fences) % 2 == 0:
            end = gap.end()
    return end


class RichScreen:
    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._session: PromptSession[str] | None = None
        self._live: Live | None = None
        self._text = ""
        self._drawn = 0.0

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def read(self) -> str | None:
        if self._session is None:
            self._session = _session()
        lines: list[str] = []
        while True:
            try:
                line = await self._session.prompt_async("... " if lines else "> ")
            except KeyboardInterrupt:
                self.tell("(Ctrl-D ends the chat)")
                return ""
            except EOFError:
                return None
            lines += line.split("\n")
            whole = joined(lines)
            if whole is not None:
                return whole

    # ---- writing ---------------------------------------------------------------------------------------------------

    def echo(self, text: str) -> None:
        self._console.print(Text(f"> {text}", style="bold"))

    def begin(self) -> None:
        self._text, self._drawn = "", 0.0
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def add(self, text: str) -> None:
        self._text += visible(text)
        now = time.perf_counter()
        if now - self._drawn >= _FRAME:
            self._drawn = now
            self._draw()

    def end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.update("")
            live.stop()
        if self._text.strip():
            self._console.print(Markdown(self._text))

    def _draw(self) -> None:
        assert self._live is not None
        done = settled(self._text)
        if done:
            self._console.print(Markdown(self._text[:done]))
            self._console.print()
            self._text = self._text[done:]
        width = self._console.options
        lines = self._console.render_lines(Markdown(self._text), width, pad=False)
        self._live.update(SegmentLines(lines[-max(1, self._console.height - 2) :], new_lines=True), refresh=True)

    def tell(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def fail(self, text: str) -> None:
        self._console.print(Text(visible(text), style="red"))


def _session() -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=InMemoryHistory(),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
    )
