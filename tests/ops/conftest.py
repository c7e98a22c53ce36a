"""The implementations under test: the native library once for every instruction set that this machine runs, the CUDA
kernels emulated, as nvcc's PTX and, marked gpu, on a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from octavo_engine.ops import Ops, OpsUnavailable, load_ops
from octavo_engine.ops.cpu import load_library
from tests.support.cuda import device_ops, emulated_ops, ptx_ops


@pytest.fixture(autouse=True)
def single_threaded_torch() -> Iterator[None]:
    """torch's threads, waiting for each other over tiny tensors, would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def ops(request: pytest.FixtureRequest) -> Ops:
    load_library()  # a missing library fails; only an instruction set that is not here is skipped
    try:
        return load_ops("cpu", isa=request.param)
    except OpsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def best_ops() -> Ops:
    """The native library with the instruction set that an engine would take here."""
    return load_ops("cpu")


@pytest.fixture
def reference() -> Ops:
    return load_ops("reference")


@pytest.fixture(params=["emulated", "ptx", pytest.param("device", marks=pytest.mark.gpu)])
def cuda_ops(request: pytest.FixtureRequest) -> Ops:
    """CUDA ops over tensors of the host."""
    make = {"emulated": emulated_ops, "ptx": ptx_ops, "device": device_ops}
    return make[request.param]()
