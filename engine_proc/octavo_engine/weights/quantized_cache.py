"""What was quantised at load, kept on disk for the next start.

One file a source, storage format and dtype, so a file that is out of date is written over, not left behind; of a model
of the hub, one for all its revisions. A file counts only if its key is the one asked for: a SHA-256 over

- each of the source's files: its resolved path, size, modification time in nanoseconds, and 16 samples of 4 KiB;
- the config that the model is built from, the storage format, the dtype, the layout and octavo's version.

That is safe because a file that was written anew has another time or size, and one put in its place under the same time
(an archive unpacked with fixed times, a package store) differs in the samples, which lie all over it. Hashing whole
checkpoints would cost more than the quantising that is saved.

Nothing here fails a start: what can't be read or written is said in the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo_engine.weights.packed_file import LAYOUT_VERSION, PackedFile, write_packed
from octavo_engine.weights.source import Progress, Source, SourceError

__all__ = ["CacheEntry", "QuantizedCache"]

log = logging.getLogger("octavo.engine")

_SAMPLES, _SAMPLE_BYTES = 16, 4096
_KEEP_FREE = 1 << 30
_STALE_SECONDS = 24 * 3600


class QuantizedCache:
    """A folder of packed checkpoints. It is made when the first one is written."""

    def __init__(self, folder: Path, version: str) -> None:
        """version: octavo's."""
        self.folder, self.version = folder, version

    def entry(self, source: Source, storage: Mapping[str, Any], dtype: str) -> CacheEntry | None:
        """Where the source goes when it is stored so; None, with a log line, where its files can't be read."""
        files = _files(source)
        form = json.dumps([storage, dtype], sort_keys=True)
        try:
            key = self._key(source, files, form)
        except OSError as error:
            log.warning("quantized_cache is not used: %s", error)
            return None
        name, origin = source.path.stem if source.kind == "gguf" else source.path.name, list(map(str, files))
        if hub := re.fullmatch(r"(.*/models--([^/]+))/snapshots/[^/]+(.*)", str(source.path)):
            name, origin = hub[2] + hub[3].removesuffix(".gguf"), [hub[1] + hub[3]]  # of whatever revision
        place = hashlib.sha256("\0".join([form, *origin]).encode()).hexdigest()[:16]
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        return CacheEntry(self, self.folder / f"{stem[:80] or 'model'}-{place}.safetensors", key)

    def _key(self, source: Source, files: list[Path], form: str) -> str:
        digest = hashlib.sha256(f"{LAYOUT_VERSION} {self.version} {form}".encode())
        digest.update(json.dumps(source.config, sort_keys=True, default=str).encode())
        for path in files:
            with path.open("rb") as file:
                status = path.stat()
                digest.update(f"\0{path} {status.st_size} {status.st_mtime_ns}\0".encode())
                for i in range(_SAMPLES):
                    file.seek(max(0, status.st_size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()


class CacheEntry:
    """One file of the cache, there or not."""

    def __init__(self, cache: QuantizedCache, path: Path, key: str) -> None:
        self.path, self.key, self._version = path, key, cache.version

    def open(self) -> PackedFile | None:
        """The file, if it is there, whole and of this key."""
        try:
            if not self.path.exists():
                return None
            file = PackedFile(self.path)
        except (SourceError, OSError) as error:  # a folder of somebody else's is no reason not to start
            self.damaged(error)
            return None
        if file.settings.get("key") != self.key:
            log.info("%s is of another version of the model or of octavo: made anew", self.path)
            return None
        return file

    def damaged(self, error: Exception) -> None:
        """Say why the file is not used."""
        log.warning("quantized_cache: %s; made anew", error)

    def write(
        self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], progress: Progress | None = None
    ) -> bool:
        """Whether it could be written."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(folder)
            free = shutil.disk_usage(folder).free
            if free < size + _KEEP_FREE:
                log.warning(
                    "quantized_cache is not written: %s has %.1f GB free, the weights take %.1f and 1 is left alone; "
                    "EngineOptions.quantized_cache names another folder",
                    folder, free / 1e9, size / 1e9,
                )  # fmt: skip
                return False
            write_packed(self.path, tensors, {**settings, "octavo": self._version, "key": self.key}, progress)
        except OSError as error:
            log.warning(
                "quantized_cache is not written: %s; EngineOptions.quantized_cache names another folder, or None", error
            )
            return False
        log.info("wrote %s, %.0f MB, for the next start", self.path, size / 1e6)
        return True


def _files(source: Source) -> list[Path]:
    """All files that tensors come from, resolved: on the hub's cache that is a name made of their content."""
    named: tuple[Path, ...] = getattr(source.checkpoint, "files", (source.path,))
    return [path.resolve() for path in named]


def _sweep(folder: Path) -> None:
    """Half-written files of engines that were killed."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
