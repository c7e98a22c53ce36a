"""Finds a checkpoint's tokenizer, wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo_engine.text.errors import TextError, WrongOption
from octavo_engine.text.folder import eos_ids, text_from_folder
from octavo_engine.text.gguf import gguf_eos_ids, text_from_gguf
from octavo_engine.text.templates import Asked
from octavo_engine.text.text import Text

__all__ = ["load_text"]


def load_text(
    source: Any = None,
    *,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    metadata: Mapping[str, Any] | None = None,
    revision: str | None = None,
    chat_template: str | None = None,
    name: str | None = None,
) -> Text:
    """The Text of a checkpoint.

    source: a `weights.Source`, or the path of a folder or GGUF file. metadata: in its place, GGUF metadata already read
    (key -> Python value). tokenizer: another place to take the tokenizer and template from: a folder, a tokenizer.json
    or tokenizer.model in one, a GGUF file, or a hub id (at `revision`); end-of-sequence ids that the checkpoint itself
    names still count. chat_template: as in EngineOptions. name: the model's, as the user gave it (a hub id): it may
    tell a chat format. Raises TextError; a checkpoint without a tokenizer is no error (`has_tokenizer` is False).
    """
    if metadata is None:
        metadata = getattr(source, "gguf_metadata", None)
    path = None if metadata else Path(getattr(source, "path", source))
    asked = Asked(trust_remote_code, chat_template, tuple(str(n) for n in (name, getattr(source, "path", source)) if n))
    if tokenizer is None:
        text = text_from_gguf(metadata, asked) if metadata else _at(path, asked)
        if chat_template is not None and not text.has_tokenizer:
            raise WrongOption(f"chat_template={chat_template[:200]!r}: the checkpoint has no tokenizer")
        return text
    text = _named(tokenizer, revision, asked)
    own = gguf_eos_ids(metadata) if metadata else eos_ids(path) if path and path.is_dir() else set()
    text.eos_token_ids |= own
    return text


def _named(tokenizer: str, revision: str | None, asked: Asked) -> Text:
    path = Path(tokenizer).expanduser()
    asked = asked._replace(names=(*asked.names, tokenizer))
    text = _at(path if path.exists() else _download(tokenizer, revision), asked)
    if not text.has_tokenizer:
        raise TextError(f"EngineOptions.tokenizer={tokenizer!r}: no tokenizer there")
    return text


def _at(path: Path | None, asked: Asked) -> Text:
    if path is not None and path.is_dir():
        return text_from_folder(path, asked)
    if path is not None and path.suffix == ".gguf":
        # A GGUF file that is not the model itself; the model's metadata comes with its Source.
        from octavo_engine.weights.gguf_file import GGUFFile

        return text_from_gguf(GGUFFile(path).metadata, asked)
    if path is not None and path.name in ("tokenizer.json", "tokenizer.model"):
        return text_from_folder(path.parent, asked)
    raise TextError(f"{path}: a tokenizer is a folder, a tokenizer.json, a tokenizer.model or a .gguf file")


def _download(name: str, revision: str | None) -> Path:
    from octavo_engine.weights.hub import fetch
    from octavo_engine.weights.source import SourceError

    try:
        return fetch(name, revision, weights=False)
    except SourceError as error:
        raise TextError(f"EngineOptions.tokenizer: {error}") from error
