"""The emulator under test, in each order of threads; the primitives also as PTX, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.support.simt import ORDERS, load_emulated


def _in_order(order: str) -> Iterator[Any]:
    library = load_emulated("simt_tests")
    library.simt_configure(order, 1, 1)
    yield library
    library.simt_configure("ascending", 1, 1)


@pytest.fixture(params=ORDERS)
def emulator(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from _in_order(request.param)


@pytest.fixture(params=[*ORDERS, "ptx", pytest.param("cuda", marks=pytest.mark.gpu)])
def primitive(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """`primitive(name, *arguments)` runs one launch of primitives.cu on CPU tensors, which it may write to."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield _caller(load_emulated("primitives_cuda"), torch.device("cuda"))
        return
    if request.param == "ptx":
        yield _caller(load_emulated("primitives_ptx"), torch.device("cpu"))
        return
    for library in _in_order(request.param):
        yield _caller(library, torch.device("cpu"))


@pytest.fixture
def tensor_core(request: pytest.FixtureRequest, primitive: Callable[..., None]) -> tuple[int, int]:
    """Of `primitive`'s mma: how many k are added together, and bits kept below the largest (arXiv 2511.10909)."""
    on_device = request.node.callspec.params["primitive"] == "cuda"
    return (8, 24) if on_device and torch.cuda.get_device_capability()[0] < 9 else (16, 25)


def _caller(library: Any, device: torch.device) -> Callable[..., None]:
    def call(name: str, *arguments: Any) -> None:
        there = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
        getattr(library, f"primitive_{name}")(*there)
        for here, result in zip(arguments, there, strict=True):
            if here is not result:
                here.copy_(result)

    return call
