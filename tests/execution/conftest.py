from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from octavo_engine.models.base import CausalLM
from octavo_engine.ops import Ops, load_ops
from tests.execution.driver import tiny_llama


@cache
def loaded_ops(name: str) -> Ops:
    return load_ops(name, num_threads=2) if name == "cpu" else load_ops(name)


@cache
def loaded_model(name: str, dtype: torch.dtype, quantization: str | None = None, scaling: str = "default") -> CausalLM:
    return tiny_llama(loaded_ops(name), dtype, quantization, scaling)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """As in the engine; the pool of torch would only compete with the kernels'."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return loaded_ops(request.param)
