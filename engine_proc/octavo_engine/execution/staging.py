"""A step's many small arrays as one copy to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_engine.ops.cuda_upload import Staging

__all__ = ["Packer"]

_TYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}
_LINE = 16  # words, so that every array begins at a multiple of 64 bytes


class Packer:
    """Arrays of int32, int64 and float32, one behind the other. A buffer grows to the largest that was asked of it."""

    def __init__(self, device: torch.device) -> None:
        self._staging = Staging(device)
        self._device = device
        self._words = np.zeros(1 << 12, np.int32)

    def send(self, arrays: list[NDArray[Any]]) -> list[Tensor]:
        """New tensors on the device; it is told to copy and not waited for. What is in `arrays` may change then."""
        places: list[int] = []
        size = 0
        for array in arrays:
            places.append(size)
            size += -(-array.nbytes // (4 * _LINE)) * _LINE
        if not size:
            return [torch.empty(array.shape, dtype=_TYPES[array.dtype], device=self._device) for array in arrays]
        if size > len(self._words):
            self._words = np.zeros(2 * size, np.int32)
        words = self._words
        for array, begin in zip(arrays, places, strict=True):
            words[begin : begin + array.nbytes // 4] = array.view(np.int32)
        (block,) = self._staging.upload([torch.from_numpy(words[:size])])
        return [
            block[begin : begin + array.nbytes // 4].view(_TYPES[array.dtype])
            for array, begin in zip(arrays, places, strict=True)
        ]
