"""A checkpoint as the engine holds it: every tensor packed as it is read into memory, in one safetensors file.

One block is read by several threads straight to where the weights will be used; nothing is computed but the checksums.
The metadata key "octavo" is JSON: `layout` (LAYOUT_VERSION), `octavo` (the version that wrote it), `quantization`,
`dtype`, `weights` (the form of each packed weight; other tensors are as they look) and `crc32`, eight hexadecimal
digits for every 16 MiB of the tensors' bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo_engine.weights.safetensors_file import SafetensorsHeader, encode_header, layout, raw_bytes
from octavo_engine.weights.source import Progress, SourceError

__all__ = ["GGUF_TOKENIZER_NAME", "LAYOUT_VERSION", "PACKED_NAME", "PackedFile", "write_packed"]

LAYOUT_VERSION = 1
"""Of ops.QuantizedLinear, ops.PackedLinear and this file's metadata: raise it when any of them changes."""

PACKED_NAME = "octavo.safetensors"
"""In a folder that `octavo quantize` wrote."""

GGUF_TOKENIZER_NAME = "tokenizer.gguf"
"""There: the metadata of a GGUF file, where the tokenizer is."""

_CHUNK = 16 << 20
_KEYS = ("layout", "octavo", "quantization", "dtype", "weights", "crc32")
_MOST_THREADS = 4


class PackedFile:
    """Opening reads the header; `read` brings everything in. It is a Checkpoint too: tensors can be read one by one.

    settings: the metadata. size: bytes of all tensors.
    """

    def __init__(self, path: Path) -> None:
        """Raises SourceError where it is not whole, or of another layout."""
        self.path = path
        self._header = SafetensorsHeader(path)
        try:
            self.settings: dict[str, Any] = json.loads(self._header.metadata["octavo"])
            missing = [key for key in _KEYS if key not in self.settings]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{path} is not a packed checkpoint: {error!r}") from error
        if missing:
            raise SourceError(f"{path} is not a packed checkpoint: its metadata lacks {', '.join(missing)}")
        if self.settings["layout"] != LAYOUT_VERSION:
            raise SourceError(
                f"{path} has layout {self.settings['layout']} (octavo {self.settings['octavo']}), this octavo reads "
                f"{LAYOUT_VERSION}: quantise the model again"
            )
        stops = [place.stop for place in self._header.tensors.values()]
        self.size = max(stops, default=self._header.start) - self._header.start
        if self._header.start + self.size != self._header.size:
            raise SourceError(f"{path} has {self._header.size - self._header.start} bytes of tensors, not {self.size}")

    def names(self) -> Iterable[str]:
        return self._header.tensors.keys()

    def nbytes(self, name: str) -> int:
        place = self._header.tensors[name]
        return place.stop - place.start

    def get(self, name: str) -> Tensor:
        """One tensor, its bytes not checked."""
        place = self._header.tensors[name]
        raw = torch.empty(place.stop - place.start, dtype=torch.uint8)
        with self.path.open("rb") as file:
            os.preadv(file.fileno(), [raw_bytes(raw)], place.start)
        return self._view(name, raw)

    def read(
        self, memory: Callable[[int], Tensor], *, threads: int = 1, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """All tensors, as views of one block that `memory(nbytes)` gives (uint8, 64-byte aligned).

        progress("load", ...) is called on this thread. Raises SourceError where a checksum differs.
        """
        block = memory(self.size)
        reader = _Reader(self.path, self._header.start, raw_bytes(block), self.settings["crc32"])
        reader.run(min(threads, _MOST_THREADS), progress)
        start = self._header.start
        return {
            name: self._view(name, block[place.start - start : place.stop - start])
            for name, place in self._header.tensors.items()
        }

    def _view(self, name: str, raw: Tensor) -> Tensor:
        place = self._header.tensors[name]
        if place.dtype is None:
            raise SourceError(f"{self.path}: tensor {name} has dtype {place.dtype_name}, which is not read")
        return raw.view(place.dtype).view(place.shape)


class _Reader:
    """Chunks of a file into memory, claimed one by one by several threads, each checked while it is in the cache."""

    def __init__(self, path: Path, start: int, memory: memoryview, sums: str) -> None:
        self.path, self.start, self.memory, self.sums = path, start, memory, sums
        self.chunks = -(-len(memory) // _CHUNK)
        if len(sums) != 8 * self.chunks:
            raise SourceError(f"{path} has {len(sums) // 8} checksums for {self.chunks} chunks")
        self.claimed = self.done = 0
        self.lock = threading.Lock()
        self.failure: SourceError | OSError | None = None

    def run(self, threads: int, progress: Progress | None) -> None:
        with self.path.open("rb") as file:
            helpers = [
                threading.Thread(target=self._work, args=(file.fileno(), None), name="octavo-read", daemon=True)
                for _ in range(min(threads, self.chunks) - 1)
            ]
            for helper in helpers:
                helper.start()
            try:
                self._work(file.fileno(), progress)
            finally:
                with self.lock:
                    self.claimed = self.chunks  # whatever ended this thread ends the others
                for helper in helpers:
                    helper.join()
        if self.failure is not None:
            raise SourceError(f"{self.path} can't be read: {self.failure}") from self.failure
        if progress is not None:
            progress("load", len(self.memory), len(self.memory), self.path.name)

    def _work(self, file: int, progress: Progress | None) -> None:
        while True:
            with self.lock:
                if self.claimed >= self.chunks or self.failure is not None:
                    return
                chunk, self.claimed = self.claimed, self.claimed + 1
            try:
                self._read(file, chunk)
            except (SourceError, OSError) as error:
                self.failure = error
                return
            with self.lock:
                self.done += 1
            if progress is not None:
                progress("load", min(self.done * _CHUNK, len(self.memory)), len(self.memory), self.path.name)

    def _read(self, file: int, chunk: int) -> None:
        piece = self.memory[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        at = 0
        while at < len(piece):
            got = os.preadv(file, [piece[at:]], self.start + chunk * _CHUNK + at)
            if not got:
                raise SourceError(f"the file ends in chunk {chunk}")
            at += got
        if f"{zlib.crc32(piece):08x}" != self.sums[8 * chunk : 8 * chunk + 8]:
            raise SourceError(f"chunk {chunk} of {self.chunks} has another checksum than when it was written")


def write_packed(
    path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], progress: Progress | None = None
) -> None:
    """A whole file or none: it is written beside `path` under another name, then renamed.

    settings: the metadata, less `layout` and `crc32`. tensors: contiguous; they are written from where they lie.
    Raises OSError. No fsync: a file that a power failure cut is told by its checksums.
    """
    entries = layout(tensors)
    total = sum(tensor.nbytes for tensor in tensors.values())
    meta = {**settings, "layout": LAYOUT_VERSION, "crc32": "0" * (8 * -(-total // _CHUNK))}
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            # The header's length does not depend on the sums, which are known when the rest is written.
            file.write(encode_header(entries, {"octavo": json.dumps(meta)}))
            sums = _Sums()
            for name in entries:
                data = raw_bytes(tensors[name])
                for at in range(0, len(data), _CHUNK):
                    sums.add(data[at : at + _CHUNK])
                    file.write(data[at : at + _CHUNK])
                    if progress is not None:
                        progress("save", sums.total, total, path.name)
            meta["crc32"] = sums.text()
            file.seek(0)
            file.write(encode_header(entries, {"octavo": json.dumps(meta)}))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class _Sums:
    """The CRC-32 of every 16 MiB of a stream."""

    def __init__(self) -> None:
        self.total = 0
        self._sums: list[int] = []

    def add(self, data: memoryview) -> None:
        while len(data):
            room = _CHUNK - self.total % _CHUNK
            if room == _CHUNK:
                self._sums.append(0)
            self._sums[-1] = zlib.crc32(data[:room], self._sums[-1])
            self.total += len(data[:room])
            data = data[room:]

    def text(self) -> str:
        return "".join(f"{value:08x}" for value in self._sums)
