"""Who else does the same work, where it is installed; what is missing is named."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["Peers"]


class Peers:
    """Optional packages by the name a result shows. `missing` says why one is not there."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._found: dict[str, ModuleType] = {}

    def get(self, name: str, module: str) -> ModuleType | None:
        """The module, None where it can't be imported."""
        if name not in self._found and name not in self.missing:
            try:
                self._found[name] = importlib.import_module(module)
            except Exception as error:  # whatever a foreign package fails with: the run goes on without it
                self.missing[name] = f"{type(error).__name__}: {error}"
        return self._found.get(name)

    def fails(self, name: str, error: Exception) -> None:
        """It is installed and does not do the work: it is left out from here on."""
        self._found.pop(name, None)
        self.missing[name] = f"{type(error).__name__}: {error}"[:300]
