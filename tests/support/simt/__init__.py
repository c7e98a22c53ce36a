"""The emulated libraries as Python sees them: loading one, and the order in which it runs threads."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ORDERS", "library_path", "load_emulated"]

_FOLDER = Path(__file__).parents[3] / "build" / "emulated"
ORDERS = ("ascending", "descending", "random")


def library_path(name: str) -> Path:
    return _FOLDER / f"lib{name}.so"


@cache
def load_emulated(name: str = "octavo_cuda_emulated") -> Any:
    """build/emulated/lib<name>.so as a TVM FFI module.

    Skips the test where nothing could have built it, without the CUDA toolkit. Besides the kernels' functions it has
    `simt_configure(order, seed, os_threads)`, `simt_last_error()` (the kind of the latest mistake, "none" before),
    `simt_checking()`, and what accesses.counting calls.
    """
    path = library_path(name)
    if not path.exists() and shutil.which("nvcc") is None:
        pytest.skip("no nvcc here: the emulated CUDA kernels are not built")
    import tvm_ffi

    return tvm_ffi.load_module(str(path))
