"""The safetensors container (github.com/huggingface/safetensors): a JSON header, then the tensors' bytes.

A reader of our own, because the pages of a mapped tensor have to be given back when it was packed: they count as the
engine's memory otherwise.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from octavo_engine.weights.source import SourceError

__all__ = ["MappedSafetensors", "SafetensorsHeader", "TensorPlace", "encode_header", "layout", "raw_bytes"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_HEADER = 100_000_000
_ALIGNMENT = 4096


@dataclass(frozen=True)
class TensorPlace:
    """dtype: None for one that is not known here. start, stop: bytes into the file."""

    dtype: torch.dtype | None
    dtype_name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsHeader:
    """tensors by name; metadata: the header's own strings; start: where the tensors' bytes begin; size: the file's."""

    def __init__(self, path: Path) -> None:
        """Raises SourceError where the file is not whole."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.start, header = _read_header(file, self.size)
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self.tensors = {name: self._place(name, entry) for name, entry in header.items()}
            _check_apart(self.tensors)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SourceError(f"{path} is not a readable safetensors file: {error}") from error

    def _place(self, name: str, entry: dict[str, Any]) -> TensorPlace:
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int for n in (*shape, begin, end)):
            raise ValueError(f"tensor {name} {list(shape)} at {begin}..{end}: not whole numbers")
        place = TensorPlace(_DTYPES.get(entry["dtype"]), entry["dtype"], shape, self.start + begin, self.start + end)
        if not 0 <= begin <= end <= self.size - self.start or any(n < 0 for n in shape):
            raise ValueError(f"tensor {name} at {begin}..{end} passes the file's end at {self.size - self.start}")
        if place.dtype is not None and math.prod(shape) * place.dtype.itemsize != end - begin:
            raise ValueError(f"tensor {name} {list(shape)} of {entry['dtype']} is not {end - begin} bytes")
        return place


def _check_apart(tensors: Mapping[str, TensorPlace]) -> None:
    """The format has none that overlap: one of the two would be another's bytes."""
    places = sorted((place.start, place.stop, name) for name, place in tensors.items())
    for (_, stop, before), (start, _, name) in itertools.pairwise(places):
        if start < stop:
            raise ValueError(f"the tensors {before} and {name} overlap")


def _read_header(file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    raw = file.read(8)
    if len(raw) < 8:
        raise ValueError(f"{size} bytes are too few")
    (length,) = struct.unpack("<Q", raw)
    if length > min(_MOST_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return 8 + length, header


class MappedSafetensors:
    """One file's tensors as views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.header = SafetensorsHeader(path)
        with path.open("rb") as file:
            # Copy-on-write, so that torch may wrap it; nobody writes to it.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self, name: str) -> Tensor:
        """Shares the file's memory. Raises SourceError for a dtype that torch lacks."""
        place = self.header.tensors[name]
        if place.dtype is None:
            raise SourceError(f"{self.header.path}: tensor {name} has dtype {place.dtype_name}, which is not read")
        count = math.prod(place.shape)
        if not count:
            return torch.empty(place.shape, dtype=place.dtype)
        raw = torch.frombuffer(self._map, dtype=torch.uint8, offset=place.start, count=place.stop - place.start)
        if place.start % place.dtype.itemsize:
            raw = raw.clone()
        return raw.view(place.dtype).view(place.shape)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system; reading it again brings them back."""
        place = self.header.tensors[name]
        first = place.start // mmap.PAGESIZE * mmap.PAGESIZE
        if place.stop > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, place.stop - first)


def layout(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The header's entries. What is a number of 64-byte lines comes first, then larger elements before smaller ones, so
    that all lie aligned; each tensor follows the one before, as the format wants."""
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % 64 != 0, -tensors[name].element_size(), name))
    entries: dict[str, dict[str, Any]] = {}
    at = 0
    for name in order:
        tensor = tensors[name]
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    return entries


def encode_header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Padded with blanks, so that the tensors begin at a page."""
    text = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
