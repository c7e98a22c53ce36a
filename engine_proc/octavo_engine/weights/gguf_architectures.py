"""Which GGUF architectures (general.architecture) are read, and the one way to read a file's config and names."""

from __future__ import annotations

from collections.abc import Callable

from octavo_engine.weights.gguf_checkpoint import Keys, Layout
from octavo_engine.weights.gguf_file import GGUFFile
from octavo_engine.weights.gguf_llama import LLAMA_LIKE
from octavo_engine.weights.gguf_older import OLDER
from octavo_engine.weights.source import SourceError

__all__ = ["GGUF_ARCHITECTURES", "gguf_layout"]

GGUF_ARCHITECTURES: dict[str, Callable[[Keys], Layout]] = {**LLAMA_LIKE, **OLDER}


def gguf_layout(file: GGUFFile) -> Layout:
    """Raises SourceError for an architecture that is not read, and for metadata that lacks what it needs."""
    keys = Keys(file)
    if keys.architecture not in GGUF_ARCHITECTURES:
        known = ", ".join(sorted(GGUF_ARCHITECTURES))
        raise SourceError(f"{file.path}: GGUF architecture {keys.architecture!r}; read are {known}")
    return GGUF_ARCHITECTURES[keys.architecture](keys)
