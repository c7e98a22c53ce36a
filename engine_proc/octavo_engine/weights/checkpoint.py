"""Checkpoints of a local folder: safetensors and torch's .bin, single or sharded."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo_engine.weights.source import Checkpoint, SourceError

__all__ = ["BinCheckpoint", "SafetensorsCheckpoint", "find_checkpoint"]

_DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


class SafetensorsCheckpoint:
    """One or several .safetensors files, memory-mapped; a tensor is copied out when it is read."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in files:
            try:
                handle = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise SourceError(f"{path} is not a readable safetensors file: {error}") from error
            names: list[str] = handle.keys()  # type: ignore[no-untyped-call]
            self._files.update(dict.fromkeys(names, handle))

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def get(self, name: str) -> Tensor:
        value: Tensor = self._files[name].get_tensor(name)
        return value

    def nbytes(self, name: str) -> int:
        view = self._files[name].get_slice(name)
        count = 1
        for size in view.get_shape():
            count *= size
        return count * _DTYPE_BYTES.get(view.get_dtype(), 1)


class BinCheckpoint:
    """One or several pytorch_model*.bin files, through torch's loader of plain tensors; nothing else is unpickled."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._tensors: dict[str, Tensor] = {}
        for path in files:
            try:
                # Files from before torch 1.6 are not zip archives and can't be mapped.
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except Exception as error:
                raise SourceError(
                    f"{path} could not be read as plain tensors (torch.load, weights_only): {error}"
                ) from error
            for name, value in state.items():
                if not isinstance(value, Tensor):
                    raise SourceError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
                self._tensors[name] = value

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


def find_checkpoint(folder: Path) -> Checkpoint:
    """The folder's weights: safetensors before .bin, an index before a single file. Raises SourceError."""
    for stem, suffix, reader in (
        ("model", "safetensors", SafetensorsCheckpoint),
        ("pytorch_model", "bin", BinCheckpoint),
    ):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            files = sorted({folder / name for name in _weight_map(index).values()})
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise SourceError(f"{index} names files that are not there: {', '.join(missing)}")
            return reader(files)
        if (folder / f"{stem}.{suffix}").is_file():
            return reader([folder / f"{stem}.{suffix}"])
    raise SourceError(
        f"no weights in {folder}: looked for model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json"
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        names = [Path(name) for name in weight_map.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{index} is not a checkpoint index: {error!r}") from error
    outside = [str(name) for name in names if name.name != str(name)]
    if outside:
        raise SourceError(f"{index} names files outside its folder: {outside[0]}")
    return weight_map
