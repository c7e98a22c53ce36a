"""The ops that single families need, on CUDA held to the reference: emulated, and marked gpu on a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Ops
from tests.ops.test_cuda_dense import TYPES, close, randn


@pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "groups", "size", "start"), [(1, 1, 1, 0), (3, 6, 8, 0), (2, 5, 33, 2), (5, 4, 128, 64), (2, 1, 2500, 3)]
)
def test_norms_of_heads(
    cuda_ops: Any, reference: Ops, rows: int, groups: int, size: int, start: int, dtype: torch.dtype, centred: bool
) -> None:
    x = (randn(rows, start + groups * size + 4) * 3 + 1).to(dtype)
    weight, bias = randn(groups * size, seed=1), randn(groups * size, seed=2) if centred else None
    got, wanted = x.clone(), x.clone()
    cuda_ops.head_norm_(got, weight, bias, 1e-5, size=size, start=start, centred=centred)
    reference.head_norm_(wanted, weight, bias, 1e-5, size=size, start=start, centred=centred)
    close(got, wanted)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (4, 576), (2, 4099)])
def test_a_norm_behind_a_block(cuda_ops: Any, reference: Ops, rows: int, width: int) -> None:
    x, weight, residual = randn(rows, width) * 3 + 1, randn(width, seed=1), randn(rows, width, seed=2)
    wanted = residual.clone()
    cuda_ops.rms_norm_add_(residual, x, weight, 1e-5)
    reference.rms_norm_add_(wanted, x, weight, 1e-5)
    close(residual, wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (2, 1300)])
def test_clips_and_factors(cuda_ops: Any, reference: Ops, rows: int, width: int, dtype: torch.dtype) -> None:
    positions, table = torch.arange(rows, dtype=torch.int32).flip(0), randn(rows, seed=1)
    got: Tensor = (randn(rows, width + 3) * 10).to(dtype)[:, :width]
    wanted = got.clone()
    for ops, x in ((cuda_ops, got), (reference, wanted)):
        ops.clip_(x, 8.0)
        ops.scale_rows_(x, positions, table, width=width - width // 3)
    close(got, wanted)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (2, 1300)])
def test_caps_and_gates(cuda_ops: Any, reference: Ops, rows: int, width: int) -> None:
    got, x, gate = randn(rows, width) * 40, randn(rows, width, seed=1), randn(rows, 1, seed=2) * 4
    wanted = got.clone()
    for ops, y in ((cuda_ops, got), (reference, wanted)):
        ops.softcap_(y, 30.0)
        ops.gated_add_(y, x, gate)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(cuda_ops: Any) -> None:
    with pytest.raises(ValueError, match="columns 0 to 70 of 64 in groups of 7"):
        cuda_ops.head_norm_(randn(2, 64), randn(70), None, 1e-5, size=7)
    with pytest.raises(ValueError, match="limit is -1; it must be positive"):
        cuda_ops.clip_(randn(2, 64), -1.0)
    with pytest.raises(ValueError, match="65 columns of x, which has 64"):
        cuda_ops.scale_rows_(randn(2, 64), torch.zeros(2, dtype=torch.int32), randn(3), width=65)
