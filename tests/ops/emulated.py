"""The dense and sampling ops of CUDA, on the emulated library of this checkout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops.cuda_dense import CudaDense
from octavo_engine.ops.cuda_sampling import CudaSampling

LIBRARY = Path(__file__).parents[2] / "build" / "emulated" / "liboctavo_cuda_emulated.so"


def emulated_ops(*, invariant: bool = False) -> Emulated:
    """Skips the test where nothing could have built the library."""
    if not LIBRARY.exists() and shutil.which("nvcc") is None:
        pytest.skip("no nvcc here: the emulated CUDA kernels are not built")
    return Emulated(invariant=invariant)


@cache
def load() -> Any:
    import tvm_ffi

    return tvm_ffi.load_module(str(LIBRARY))


class Emulated(CudaDense, CudaSampling):
    """These ops on tensors of the host."""

    def __init__(self, *, invariant: bool = False) -> None:
        self.device, self.isa = torch.device("cpu"), "emulated"
        self._bind_dense(load(), invariant=invariant)
        self._bind_sampling(load())

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    @contextmanager
    def order(self, name: str) -> Iterator[None]:
        """Threads and blocks run in another order."""
        load().simt_configure(name, 3, 1)
        yield
        load().simt_configure("ascending", 0, 1)
