"""A model to load: its config and its tensors, from wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Checkpoint", "Progress", "Source", "SourceError"]

Progress = Callable[[str, int, int, str], None]
"""progress(stage, done, total, text): stages are "download" (bytes, or files) and "load" (bytes)."""


class SourceError(Exception):
    """The model could not be found or read; the message says what was looked for, and where."""


class Checkpoint(Protocol):
    """Tensors by their published (HF) name, read one at a time."""

    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Tensor:
        """May share memory with a mapped file: copy what is kept."""
        ...

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor as stored, for progress."""
        ...


@dataclass(frozen=True)
class Source:
    """kind: "folder", "gguf", or "packed", a folder that `octavo quantize` wrote. path: the folder, or the .gguf file.
    config: config.json's keys, also for GGUF."""

    kind: str
    path: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    gguf_metadata: dict[str, Any] = field(default_factory=dict, repr=False)
