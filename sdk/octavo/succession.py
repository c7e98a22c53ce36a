"""What a client keeps from one engine to the next: the adapters that it had, and what it says while there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from octavo import wire
from octavo.errors import ClientClosed, EngineDead, LoraError

if TYPE_CHECKING:
    from octavo.router import Router

__all__ = ["Succession"]

log = logging.getLogger("octavo")


class Succession:
    """down: why nothing can be asked, between an engine's death and the next one."""

    def __init__(self) -> None:
        self.down: str | None = None
        self._loras: dict[str, str] = {}  # paths by name, as last heard of

    def check(self) -> None:
        """Raises EngineDead where there is no engine at the moment."""
        if self.down is not None:
            raise EngineDead(self.down)

    @contextmanager
    def next_engine(self) -> Iterator[None]:
        """While one is being started in the place of another."""
        self.down = "the engine has died and is being started again"
        try:
            yield
        except ClientClosed:
            self.down = None  # there will be none, and the session says why
            raise
        except BaseException as error:
            self.down = f"the engine has died, and starting it again failed: {str(error) or type(error).__name__}"
            raise
        self.down = None

    def know(self, loras: tuple[wire.LoraInfo, ...]) -> tuple[wire.LoraInfo, ...]:
        """Those that are loaded now."""
        self._loras = {info.name: info.path for info in loras}
        return loras

    async def load_again(self, router: Router) -> None:
        """The adapters of the last engine; one that can't be had any more is no reason to have no engine."""
        for name, path in list(self._loras.items()):
            try:
                await router.loras(lambda number, name=name, path=path: wire.LoadLora(number, name, path))  # type: ignore[misc]
            except LoraError as error:
                log.warning("the adapter %s is not loaded any more: %s", name, error)
