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
        names: list[str] = []  # of the tensors, and none for what fills a last line
        sizes: list[int] = []
        others: list[tuple[str, torch.dtype]] = []  # those that are not int32
        flat: list[NDArray[np.int32]] = []
        for name, array in arrays.items():
            rows, count = [name], array.size
            if array.ndim == 2:
                rows, count, array = name.split(), width, array.reshape(-1)
            elif array.dtype != _WORD:
                others.append((name, _TYPES[array.dtype]))
                array = array.view(_WORD)
                count = array.size
            flat.append(array)
            fill = -count % LINE
            for row in rows:
                names.append(row)
                sizes.append(count)
                if fill:
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
