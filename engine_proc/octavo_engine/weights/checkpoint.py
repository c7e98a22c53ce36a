"""Checkpoints of a local folder: safetensors and torch's .bin, single or sharded."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from octavo_engine.weights.safetensors_file import MappedSafetensors
from octavo_engine.weights.source import Checkpoint, SourceError

__all__ = ["BinCheckpoint", "SafetensorsCheckpoint", "find_checkpoint"]


class SafetensorsCheckpoint:
    """One or several .safetensors files, memory-mapped."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._by_name: dict[str, MappedSafetensors] = {}
        for path in self.files:
            file = MappedSafetensors(path)
            for name in file.header.tensors:
                if name in self._by_name:
                    raise _twice(name, self._by_name[name].header.path, path)
                self._by_name[name] = file

    def names(self) -> Iterable[str]:
        return self._by_name.keys()

    def get(self, name: str) -> Tensor:
        return self._by_name[name].get(name)

    def nbytes(self, name: str) -> int:
        place = self._by_name[name].header.tensors[name]
        return place.stop - place.start

    def release(self, name: str) -> None:
        """Give the pages of a tensor that was read back to the system."""
        self._by_name[name].release(name)


class BinCheckpoint:
    """One or several pytorch_model*.bin files, through torch's loader of plain tensors; nothing else is unpickled."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._tensors: dict[str, Tensor] = {}
        sources: dict[str, Path] = {}
        for path in self.files:
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
                if name in sources:
                    raise _twice(name, sources[name], path)
                self._tensors[name], sources[name] = value, path

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


def _twice(name: str, first: Path, second: Path) -> SourceError:
    """One of the two would win, and nobody could tell which."""
    return SourceError(f"tensor {name} is both in {first} and in {second.name}: a checkpoint holds each tensor once")


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{index} is not a checkpoint index: {error!r}") from error
    outside = [str(name) for name in names if name.name != str(name)]
    if outside:
        raise SourceError(f"{index} names files outside its folder: {outside[0]}")
    return weight_map
