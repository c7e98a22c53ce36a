"""Checkpoints of the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo_engine.weights.source import Progress, SourceError

__all__ = ["fetch"]

# Code (*.py) is fetched with the rest, and run only with trust_remote_code.
_SMALL = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.py"]


def fetch(
    model: str,
    revision: str | None = None,
    progress: Progress | None = None,
    weights: bool = True,
    patterns: Sequence[str] | None = None,
) -> Path:
    """The local folder of hub id "owner/name", or the file of "owner/name/file.gguf". Raises SourceError.

    safetensors are preferred to .bin; weights False leaves both out, for a tokenizer. patterns: the files to take, if
    it is no model.
    Where the hub can't be reached, what its cache holds is used.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise SourceError(f"{model!r} is no local path, and huggingface_hub is not installed") from error
    parts = model.split("/")
    more: dict[str, Any] = {"revision": revision}
    if progress is not None:
        more["tqdm_class"] = _reporter(progress, model)
    try:
        if len(parts) > 2:
            # One file as a snapshot of it: that is told at once where there is no network, a download tries for long.
            name = "/".join(parts[2:])
            file = Path(hub.snapshot_download("/".join(parts[:2]), allow_patterns=[name], **more)) / name
            if not file.is_file():
                raise SourceError(f"{model!r}: {'/'.join(parts[:2])} has no file {name}")
            return file
        wanted = [*_SMALL, "model*.safetensors"] if weights else _SMALL
        if patterns is not None:
            return Path(hub.snapshot_download(model, allow_patterns=list(patterns), **more))
        folder = Path(hub.snapshot_download(model, allow_patterns=wanted, **more))
        if weights and not any(folder.glob("model*.safetensors")):
            hub.snapshot_download(model, allow_patterns=["pytorch_model*.bin"], **more)
    except HFValidationError as error:
        raise SourceError(f"{model!r} is no local path and no hub id: {error}") from error
    except OSError as error:
        at = f" at revision {revision!r}" if revision else ""
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{model!r} is no local path, and as a hub model{at} it is not in the cache and could not be fetched: {why}"
        ) from error
    return folder


def _reporter(progress: Progress, model: str) -> type[Any]:
    """A progress bar class that draws nothing and passes on what huggingface_hub counts."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"file": io.StringIO(), "disable": False}))

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            progress("download", int(self.n), int(self.total or 0), self.desc or model)
            return drawn

    return Reporter
