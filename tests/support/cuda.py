"""CUDA ops for tests: emulated on the CPU in two ways, or a device's, seen as if their tensors lay on the host."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Ops, QuantizedWeight, load_ops
from octavo_engine.ops.cuda import CudaOps, load_library
from octavo_engine.ops.cuda_graphs import Graphs

__all__ = ["OnDevice", "device_ops", "emulated_library", "emulated_ops", "emulated_order", "ptx_ops"]

_ALIGNED = 64  # elements
_EMULATED = Path(__file__).resolve().parents[2] / "build" / "emulated"


def emulated_ops(*, check: bool = True, invariant: bool = False, graphs: Graphs | None = None) -> CudaOps:
    """The kernels on the CPU. check: every memory access of a kernel is looked at; without, they run faster.

    Skips the test where nothing could have built them.
    """
    return CudaOps(emulated=_emulated(check), invariant=invariant, graphs=graphs)


def emulated_library(*, check: bool = True) -> Any:
    """The same kernels as a TVM FFI module."""
    return load_library(_emulated(check))


def ptx_ops(*, invariant: bool = False, graphs: Graphs | None = None) -> CudaOps:
    """What nvcc made of the kernels, run by the PTX machine (tests/support/ptx).

    Skips the test where nothing could have built it.
    """
    return CudaOps(emulated=_built("liboctavo_cuda_ptx.so"), invariant=invariant, graphs=graphs)


def _emulated(check: bool) -> Path:
    return _built(f"liboctavo_cuda_emulated{'' if check else '_fast'}.so")


def _built(name: str) -> Path:
    path = _EMULATED / name
    if not path.exists() and shutil.which("nvcc") is None:
        pytest.skip("no nvcc here: the emulated CUDA kernels are not built")
    return path


@contextmanager
def emulated_order(order: str) -> Iterator[None]:
    """Emulated threads and blocks run in another order: "descending" or "random"."""
    library = emulated_library()
    library.simt_configure(order, 3, 1)
    try:
        yield
    finally:
        library.simt_configure("ascending", 0, 1)


def device_ops() -> Ops:
    """Those of the first CUDA device; tensors of the host go there and come back."""
    ops: Any = OnDevice(load_ops("cuda"))
    return ops


class OnDevice:
    """`Ops` whose tensors may lie on the host.

    What a test hands over is copied to the device, strides and alignment included, and what an op may have written into
    is copied back. Packed weights and caches stay where the op put them.
    """

    _AS_THEY_ARE = ("activation_dtype", "empty_cache", "page_bytes", "record", "weight_memory")

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ops, name)
        if not callable(value) or name in self._AS_THEY_ARE:
            return value
        return partial(self._call, value)

    def _call(self, op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        moved: list[tuple[Tensor, Tensor]] = []

        def there(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.device.type != "cpu":
                return x
            for host, copy in moved:
                if host is x:
                    return copy
            first = x.storage_offset() % _ALIGNED
            size = first + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1
            memory = torch.empty(size if x.numel() else first, dtype=x.dtype, device=self._ops.device)
            moved.append((x, memory.as_strided(x.shape, x.stride(), first)))
            moved[-1][1].copy_(x)
            return moved[-1][1]

        def back(x: Any) -> Any:
            if isinstance(x, QuantizedWeight):
                return QuantizedWeight(x.codes.cpu(), x.scales.cpu(), back(x.offsets), x.bits, x.group_size)
            if isinstance(x, tuple):
                return tuple(back(y) for y in x)
            if not isinstance(x, Tensor):
                return x
            return next((host for host, copy in moved if copy is x), x.cpu())

        result = op(*(there(x) for x in arguments), **{name: there(x) for name, x in options.items()})
        for host, copy in moved:
            host.copy_(copy)
        return back(result)
