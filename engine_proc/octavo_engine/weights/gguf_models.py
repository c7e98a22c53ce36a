"""GGUF files by their general.architecture: each with the config and the names of the published checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo_engine.weights.gguf_file import GGUFFile
from octavo_engine.weights.gguf_llama import GGUFCheckpoint, gguf_config, llama_checkpoint
from octavo_engine.weights.gguf_older import OLDER
from octavo_engine.weights.source import SourceError

__all__ = ["read_gguf"]

Reader = Callable[[GGUFFile], tuple[dict[str, Any], GGUFCheckpoint]]


def _llama(file: GGUFFile) -> tuple[dict[str, Any], GGUFCheckpoint]:
    return gguf_config(file), llama_checkpoint(file)


_READERS: dict[str, Reader] = {"llama": _llama, **OLDER}


def read_gguf(file: GGUFFile) -> tuple[dict[str, Any], GGUFCheckpoint]:
    """(config.json's keys, tensors under published names and in published row order). Raises SourceError."""
    kind = file.metadata.get("general.architecture")
    if kind not in _READERS:
        raise SourceError(f"{file.path}: GGUF architecture {kind!r}; read are {', '.join(sorted(_READERS))}")
    return _READERS[kind](file)
