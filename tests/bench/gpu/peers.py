"""Who else does the same work, where it is installed; what is missing is named."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["Peers"]


class Peers:
    """Optional implementations by the name that a result shows. `missing` says why one takes no part (any more)."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._found: dict[str, ModuleType] = {}

    def get(self, name: str, module: str) -> ModuleType:
        """The module of a peer. Raises whatever importing it raises."""
        if name not in self._found:
            self._found[name] = importlib.import_module(module)
        return self._found[name]

    def fails(self, name: str, error: Exception) -> None:
        """It is not installed, or does not do the work: it is left out from here on."""
        self.missing[name] = f"{type(error).__name__}: {error}"[:300]
