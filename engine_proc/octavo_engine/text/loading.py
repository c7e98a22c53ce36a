"""Finds a checkpoint's tokenizer, wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo_engine.text.errors import TextError
from octavo_engine.text.folder import eos_ids, text_from_folder
from octavo_engine.text.gguf import gguf_eos_ids, text_from_gguf
from octavo_engine.text.text import Text

__all__ = ["load_text"]


def load_text(
    source: Any = None,
    *,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    metadata: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> Text:
    """The Text of a checkpoint.

    source: a `weights.Source`, or the path of a folder or GGUF file. metadata: in its place, GGUF metadata already read
    (key -> Python value). tokenizer: another place to take the tokenizer and template from: a folder, a
    tokenizer.json, a GGUF file, or a hub id (at `revision`); end-of-sequence ids that the checkpoint itself names still
    count. Raises TextError; a checkpoint without a tokenizer is no error (`has_tokenizer` is False).
    """
    if metadata is None:
        metadata = getattr(source, "gguf_metadata", None)
    path = None if metadata else Path(getattr(source, "path", source))
    if tokenizer is None:
        return text_from_gguf(metadata) if metadata else _at(path, trust_remote_code)
    text = _named(tokenizer, revision, trust_remote_code)
    own = gguf_eos_ids(metadata) if metadata else eos_ids(path) if path and path.is_dir() else set()
    text.eos_token_ids |= own
    return text


def _named(tokenizer: str, revision: str | None, trust_remote_code: bool) -> Text:
    path = Path(tokenizer).expanduser()
    text = _at(path if path.exists() else _download(tokenizer, revision), trust_remote_code)
    if not text.has_tokenizer:
        raise TextError(f"EngineOptions.tokenizer={tokenizer!r}: no tokenizer there")
    return text


def _at(path: Path | None, trust_remote_code: bool) -> Text:
    if path is not None and path.is_dir():
        return text_from_folder(path, trust_remote_code)
    if path is not None and path.suffix == ".gguf":
        # A GGUF file that is not the model itself; the model's metadata comes with its Source.
        from octavo_engine.weights.gguf_file import GGUFFile

        return text_from_gguf(GGUFFile(path).metadata)
    if path is not None and path.name == "tokenizer.json":
        return text_from_folder(path.parent, trust_remote_code)
    raise TextError(f"{path}: a tokenizer is a folder, a tokenizer.json or a .gguf file")


def _download(name: str, revision: str | None) -> Path:
    from octavo_engine.weights.hub import fetch
    from octavo_engine.weights.source import SourceError

    try:
        return fetch(name, revision, weights=False)
    except SourceError as error:
        raise TextError(f"EngineOptions.tokenizer: {error}") from error
