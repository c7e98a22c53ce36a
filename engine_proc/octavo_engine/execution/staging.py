"""A step's many small arrays as one copy to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_engine.ops.cuda_upload import Staging

__all__ = ["Arrays", "Packer"]

Arrays = dict[str, NDArray[Any]]

_WORD = np.dtype(np.int32)
_TYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}
_LINE = 16  # words, so that every array begins at a multiple of 64 bytes


class Packer:
    """Arrays of int32, int64 and float32, one behind the other. The buffer grows to the largest that was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._staging = Staging(device)

    def send(self, arrays: Arrays) -> dict[str, Tensor]:
        """New tensors on the device; it is told to copy and not waited for. What is in `arrays` may change then.

        One array at least is not empty.
        """
        sizes: list[int] = []  # of an array and of what fills its last line, by turns
        for array in arrays.values():
            count = array.size if array.dtype == _WORD else array.nbytes >> 2
            sizes += (count, -count % _LINE)
        words = self._staging.room(sum(sizes))
        begin = 0
        for array, count, filled in zip(arrays.values(), sizes[::2], sizes[1::2], strict=True):
            words[begin : begin + count] = array if array.dtype == _WORD else array.view(_WORD)
            begin += count + filled
        parts = self._staging.send().split_with_sizes(sizes)[::2]
        return {
            name: part if array.dtype == _WORD else part.view(_TYPES[array.dtype])
            for (name, array), part in zip(arrays.items(), parts, strict=True)
        }
