"""The GGUF container (github.com/ggml-org/ggml, docs/gguf.md): metadata and where the tensors lie.

A reader of our own because a start has to be quick: the gguf package makes a numpy view of every string and takes
2.3 s over SmolLM2's 98,000 vocabulary entries and merges; this takes under a twentieth of that.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_engine.weights.source import SourceError

__all__ = ["GGUFFile", "TensorInfo"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """shape: slowest dimension first, as torch has it. kind: ggml's type number. offset: bytes into the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUFFile:
    """metadata: every key, arrays as lists, strings as str. tensors: by ggml's names. data: the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Copy-on-write, so that torch may wrap it; nobody writes to it.
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise SourceError(f"{path} can't be mapped: {error}") from error
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._read()
        except (struct.error, IndexError, KeyError, RecursionError) as error:
            raise SourceError(f"{path} is not a whole GGUF file: {error!r}") from error

    def _read(self) -> None:
        magic, version, num_tensors, num_keys = struct.unpack_from("<4sIQQ", self.data, 0)
        if magic != b"GGUF" or version not in (2, 3):
            raise SourceError(f"{self.path}: magic {magic!r}, version {version}; GGUF of version 2 or 3 is read")
        at = 24
        for _ in range(num_keys):
            key, at = self._string(at)
            if key in self.metadata:
                raise SourceError(f"{self.path}: the key {key} stands there twice")
            (kind,) = struct.unpack_from("<I", self.data, at)
            self.metadata[key], at = self._value(kind, at + 4)
        self._keys_end = at
        for _ in range(num_tensors):
            name, at = self._string(at)
            (dims,) = struct.unpack_from("<I", self.data, at)
            if not 1 <= dims <= 4:
                raise SourceError(f"{self.path}: tensor {name} has {dims} dimensions; GGUF has 1 to 4")
            *sizes, kind, offset = struct.unpack_from(f"<{dims}QIQ", self.data, at + 4)
            at += 4 + 8 * dims + 12
            if name in self.tensors or 0 in sizes:
                raise SourceError(f"{self.path}: tensor {name} {sizes} stands there twice or is empty")
            self.tensors[name] = TensorInfo(name, tuple(reversed(sizes)), kind, offset)
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or align < 8 or align % 8:
            raise SourceError(f"{self.path}: general.alignment is {align!r}; allowed: a multiple of 8")
        start = -(-at // align) * align
        for name, info in self.tensors.items():
            if info.offset % align:
                raise SourceError(f"{self.path}: tensor {name} at {info.offset} is not aligned to {align}")
            self.tensors[name] = TensorInfo(name, info.shape, info.kind, start + info.offset)

    def without_tensors(self) -> bytes:
        """A GGUF file of the same metadata, and so the same tokenizer, that holds no tensor."""
        magic, version, _, num_keys = struct.unpack_from("<4sIQQ", self.data, 0)
        return struct.pack("<4sIQQ", magic, version, 0, num_keys) + self.data[24 : self._keys_end]

    def release(self, offset: int, size: int) -> None:
        """Give the file's pages behind these bytes back to the system; reading them again brings them back."""
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if size > 0:
            self.data.madvise(mmap.MADV_DONTNEED, first, offset + size - first)

    def _string(self, at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", self.data, at)
        end = at + 8 + length
        if end > len(self.data):
            raise IndexError(f"a string of {length} bytes at {at} passes the end of the file")
        return str(self.data[at + 8 : end], "utf-8", "replace"), end

    def _value(self, kind: int, at: int) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(at)
        if kind != _ARRAY:
            code = _SCALARS[kind]
            return struct.unpack_from(f"<{code}", self.data, at)[0], at + struct.calcsize(code)
        kind, count = struct.unpack_from("<IQ", self.data, at)
        at += 12
        if kind in _SCALARS:
            layout = f"<{count}{_SCALARS[kind]}"
            return list(struct.unpack_from(layout, self.data, at)), at + struct.calcsize(layout)
        values = []
        for _ in range(count):
            value, at = self._value(kind, at)
            values.append(value)
        return values, at
