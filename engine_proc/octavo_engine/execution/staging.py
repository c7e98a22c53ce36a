"""A step's many small arrays as one copy to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_engine.ops.cuda_upload import Staging

__all__ = ["LINE", "Arrays", "Fixed", "Packer"]

Arrays = dict[str, NDArray[Any]]

_WORD = np.dtype(np.int32)
_TYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}
LINE = 16  # words, so that every array begins at a multiple of 64 bytes


class Fixed:
    """What lies at one address of the device, again and again as `host` is then: int32, of one dimension."""

    def __init__(self, host: NDArray[np.int32], device: torch.device) -> None:
        self._host, self._staging = host, Staging(device)
        self.there = torch.from_numpy(host).to(device, copy=True)

    def stage(self) -> int:
        """Take down what the host says; for `send`."""
        self._staging.room(len(self._host))[: len(self._host)] = self._host
        return self._staging.staged

    def send(self, staged: int) -> None:
        """The device is told to copy it and not waited for. Two that are staged may wait for this at a time."""
        self._staging.copy(staged, self.there)


class Packer:
    """Arrays of int32, int64 and float32, one behind the other. The buffer grows to the largest that was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._staging = Staging(device)

    def send(self, arrays: Arrays) -> dict[str, Tensor]:
        """New tensors on the device; it is told to copy and not waited for. What is in `arrays` may change then. One
        array at least is not empty."""
        names: list[str] = []  # of the tensors, and none for what fills a last line
        sizes: list[int] = []
        others: list[tuple[str, torch.dtype]] = []  # those that are not int32
        flat: list[NDArray[np.int32]] = []
        for name, array in arrays.items():
            if array.dtype != _WORD:
                others.append((name, _TYPES[array.dtype]))
                array = array.view(_WORD)
            flat.append(array)
            names.append(name)
            sizes.append(array.size)
            if fill := -array.size % LINE:
                names.append("")
                sizes.append(fill)
        words = self._staging.room(sum(sizes))
        begin = 0
        for array in flat:
            end = begin + array.size
            words[begin:end] = array
            begin = end + -end % LINE
        sent = dict(zip(names, self._staging.send().split_with_sizes(sizes), strict=True))
        sent.pop("", None)
        for name, kind in others:
            sent[name] = sent[name].view(kind)
        return sent
