"""Tensors larger than the machine's memory, of which only the pages that are written take any."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["sparse_zeros"]

_NORESERVE = 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on


def sparse_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros on the host. Whoever reads or writes all of it takes all the memory."""
    size = torch.Size(shape).numel() * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
