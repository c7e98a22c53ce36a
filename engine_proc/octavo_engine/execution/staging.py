"""A step's many small arrays as one copy to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_engine.ops.cuda_upload import Staging

__all__ = ["LINE", "Arrays", "Packer"]

Arrays = dict[str, NDArray[Any]]

_WORD = np.dtype(np.int32)
_TYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}
LINE = 16  # words, so that every array begins at a multiple of 64 bytes


class Packer:
    """Arrays of int32, int64 and float32, one behind the other. The buffer grows to the largest that was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._staging = Staging(device)

    def send(self, arrays: Arrays, width: int = 0) -> dict[str, Tensor]:
        """New tensors on the device; it is told to copy and not waited for. What is in `arrays` may change then.

        An array of two dimensions is int32, its rows `width` elements and what makes them a multiple of LINE; each of
        them is a tensor, and they are named by the words of its name. One array at least is not empty.
        """
        names: list[str] = []
        kinds: list[np.dtype[Any]] = []
        sizes: list[int] = []  # of a tensor and of what fills its last line, by turns
        for name, array in arrays.items():
            rows = [name] if array.ndim == 1 else name.split()
            count = array.nbytes >> 2 if array.ndim == 1 else width
            names += rows
            kinds += [array.dtype] * len(rows)
            sizes += (count, -count % LINE) * len(rows)
        words = self._staging.room(sum(sizes))
        begin = 0
        for array in arrays.values():
            end = begin + (array.nbytes >> 2)
            words[begin:end] = array.reshape(-1).view(_WORD)
            begin = end + (begin - end) % LINE
        parts = self._staging.send().split_with_sizes(sizes)[::2]
        return {
            name: part if kind == _WORD else part.view(_TYPES[kind])
            for name, kind, part in zip(names, kinds, parts, strict=True)
        }
