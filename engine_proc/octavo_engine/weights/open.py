"""The one way in: a name that a user gives, opened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from octavo_engine.weights.checkpoint import find_checkpoint
from octavo_engine.weights.gguf_architectures import gguf_layout
from octavo_engine.weights.gguf_checkpoint import GGUFCheckpoint
from octavo_engine.weights.gguf_file import GGUFFile
from octavo_engine.weights.hub import fetch
from octavo_engine.weights.packed_file import GGUF_TOKENIZER_NAME, PACKED_NAME, PackedFile
from octavo_engine.weights.source import Progress, Source, SourceError

__all__ = ["open_source"]


def open_source(model: str | os.PathLike[str], revision: str | None = None, progress: Progress | None = None) -> Source:
    """A local folder, also one that `octavo quantize` wrote, a .gguf file, a hub id "owner/name", or
    "owner/name/file.gguf" on the hub.

    Opening reads names and metadata; tensors are read when asked for. Raises SourceError.
    """
    try:
        return _open(Path(model).expanduser(), os.fspath(model), revision, progress)
    except (OSError, UnicodeError) as error:  # no permission, a name too long, or not to be written in this locale
        raise SourceError(f"{model} can't be read: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path, name: str, revision: str | None, progress: Progress | None) -> Source:
    if not path.exists():
        looks_local = name.startswith(("/", ".", "~")) or (path.suffix == ".gguf" and name.count("/") != 2)
        if looks_local:
            raise SourceError(f"no such file or folder: {path.absolute()}")
        path = fetch(name, revision, progress)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and (path.suffix == ".gguf" or _magic(path) == b"GGUF"):
        file = GGUFFile(path)
        layout = gguf_layout(file)
        return Source("gguf", path, layout.config, GGUFCheckpoint(file, layout), file.metadata)
    raise SourceError(f"{path} is neither a folder with config.json nor a .gguf file")


def _open_folder(path: Path) -> Source:
    config = path / "config.json"
    if not config.is_file():
        ggufs = ", ".join(sorted(file.name for file in path.glob("*.gguf")))
        hint = f"; name one of its GGUF files instead: {ggufs}" if ggufs else ""
        raise SourceError(f"{path} has no config.json{hint}")
    try:
        values = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{config} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{config} is not a JSON object")
    if (path / PACKED_NAME).is_file():
        return _open_packed(path, values)
    return Source("folder", path, values, find_checkpoint(path))


def _open_packed(path: Path, config: dict[str, Any]) -> Source:
    """A folder that `octavo quantize` wrote; its config's quantization_config only tells people what is in it."""
    values = {key: value for key, value in config.items() if key != "quantization_config"}
    tokenizer = path / GGUF_TOKENIZER_NAME
    metadata = GGUFFile(tokenizer).metadata if tokenizer.is_file() else {}
    return Source("packed", path, values, PackedFile(path / PACKED_NAME), metadata)


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
