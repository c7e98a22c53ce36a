"""The deadline of last resort: an engine that is alive but hangs is told from one that only takes long.

While something is in flight, a timer ticks four times a timeout. Each tick asks the engine's step loop a question,
unless the last one is still unanswered, and looks whether any frame has come since the tick before. Four silent ticks
in a row, and the engine is unresponsive. Every tick asks, not only those after silence: an engine that answers between
its steps is then never taken for dead because of a step shorter than the timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.loop import Loop

__all__ = ["Heartbeat"]

_TICKS = 4


class Heartbeat:
    """Ticks between `start` and `stop`; there is no timer otherwise.

    timeout: seconds of silence. ask: send the question. look: take what lies unread. on_silent: the timeout passed.
    Ticks are counted and not seconds: a host that was itself stopped or held up makes one late tick of it, and the
    engine is not blamed.
    """

    __slots__ = (
        "_ask",
        "_cancel",
        "_look",
        "_loop",
        "_on_silent",
        "_running",
        "_silent_ticks",
        "asked",
        "heard",
        "timeout",
    )

    def __init__(
        self,
        loop: Loop,
        timeout: float,
        *,
        ask: Callable[[], None],
        look: Callable[[], None],
        on_silent: Callable[[], None],
    ) -> None:
        self.timeout = timeout
        self.heard = False  # set by whoever receives a frame
        self.asked = False  # reset by whoever receives the answer; it survives stop(), and so does the question
        self._loop = loop
        self._ask = ask
        self._look = look
        self._on_silent = on_silent
        self._running = False
        self._silent_ticks = 0
        self._cancel: Callable[[], None] | None = None

    def start(self) -> None:
        """Something is in flight. Idempotent."""
        if not self._running:
            self._running = True
            self.heard = False
            self._silent_ticks = 0
            self._arm()

    def stop(self) -> None:
        """Nothing is in flight. Idempotent."""
        self._running = False
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _arm(self) -> None:
        self._cancel = self._loop.later(self.timeout / _TICKS, self._tick)

    def _tick(self) -> None:
        self._cancel = None
        if not self.heard:
            self._look()  # this loop may have been too busy to read
        if not self._running:  # what lay unread was the end of all
            return
        self._silent_ticks = 0 if self.heard else self._silent_ticks + 1
        self.heard = False
        if self._silent_ticks >= _TICKS:
            self.stop()
            self._on_silent()
            return
        self._arm()
        if not self.asked:
            self.asked = True
            self._ask()
