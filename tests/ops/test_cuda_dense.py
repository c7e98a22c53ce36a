"""The dense ops of CUDA held to the reference: emulated, and marked gpu on a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Ops
from tests.support.cuda import emulated_ops, emulated_order

TYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def randn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: Tensor, wanted: Tensor) -> None:
    """Within an ulp or two of the type, of values about 1."""
    assert got.dtype == wanted.dtype
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[False, True], ids=["cublas", "invariant"])
def either(cuda_ops: Any, request: pytest.FixtureRequest) -> Any:
    return with_invariant(cuda_ops, request.param)


def with_invariant(ops: Any, invariant: bool) -> Any:
    getattr(ops, "_ops", ops).invariant = invariant  # of a device's ops, those behind the ones for tests
    return ops


# ---- norms ------------------------------------------------------------------------------------------------------
# Widths: less than a warp's four, odd, one warp, several, sixteen elements a thread and more, beyond 16384.
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (5, 64), (2, 515), (3, 576), (2, 4096), (1, 16640)])
def test_norms(cuda_ops: Any, reference: Ops, rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight, bias = randn(rows, width) * 3 + 0.5, randn(width, seed=1), randn(width, seed=2)
    kept = x.clone()
    close(cuda_ops.rms_norm(x, weight, 1e-5, dtype), reference.rms_norm(x, weight, 1e-5, dtype))
    for w, b in ((weight, bias), (weight, None), (None, None)):
        close(cuda_ops.layer_norm(x, w, b, 1e-5, dtype), reference.layer_norm(x, w, b, 1e-5, dtype))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("delta_type", TYPES)
@pytest.mark.parametrize("width", [7, 576])
def test_norms_with_the_residual_added_first(cuda_ops: Any, width: int, delta_type: torch.dtype) -> None:
    x, weight, delta = randn(4, width), randn(width, seed=1), randn(4, width, seed=3, dtype=delta_type)
    wanted = x + delta.float()
    for layer in (False, True):
        residual = x.clone()
        if layer:
            got = cuda_ops.add_layer_norm(residual, delta, weight, None, 1e-5, torch.bfloat16)
            assert torch.equal(got, cuda_ops.layer_norm(wanted, weight, None, 1e-5, torch.bfloat16))
        else:
            got = cuda_ops.add_rms_norm(residual, delta, weight, 1e-5, torch.bfloat16)
            assert torch.equal(got, cuda_ops.rms_norm(wanted, weight, 1e-5, torch.bfloat16))
        assert torch.equal(residual, wanted)


def test_a_norm_of_a_column_slice_has_the_bits_of_its_copy(cuda_ops: Any) -> None:
    """Rows 577 elements apart can't be read four at a time; the order of the sums is the same."""
    x, weight = randn(3, 577)[:, :576], randn(576, seed=1)
    got = cuda_ops.rms_norm(x, weight, 1e-5, torch.float32)
    assert torch.equal(got, cuda_ops.rms_norm(x.contiguous(), weight, 1e-5, torch.float32))


def test_a_norm_refuses_rows_too_wide(cuda_ops: Any) -> None:
    with pytest.raises(ValueError, match="rows of 32769 elements; a norm on CUDA takes at most 32768"):
        cuda_ops.rms_norm(torch.zeros(1, 32769), torch.zeros(32769), 1e-5, torch.float32)


# ---- embeddings and casts -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 6, 64, 1040])
def test_embeddings(cuda_ops: Any, reference: Ops, width: int, dtype: torch.dtype) -> None:
    table, ids = randn(11, width, dtype=dtype), torch.tensor([10, 0, 3, 3], dtype=torch.int32)
    assert torch.equal(cuda_ops.embedding(ids, table, 2.5), reference.embedding(ids, table, 2.5))
    assert torch.equal(cuda_ops.embedding(ids, cuda_ops.pack_linear(table)), reference.embedding(ids, table))
    residual = randn(4, width, seed=5)
    wanted = residual.clone()
    cuda_ops.embedding_add_(residual, ids, table, 0.5)
    reference.embedding_add_(wanted, ids, table, 0.5)
    assert torch.equal(residual, wanted)


def test_an_id_beyond_the_table_gives_nan(cuda_ops: Any) -> None:
    got = cuda_ops.embedding(torch.tensor([4, -1, 0], dtype=torch.int32), torch.ones(4, 8))
    assert got.isnan().all(1).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 6, 64, 1037])
def test_casts(cuda_ops: Any, width: int, dtype: torch.dtype) -> None:
    x = randn(3, 2 * width) * 100
    x[0, 0], x[1, 0] = float("inf"), float("nan")
    got = cuda_ops.cast(x[:, :width], dtype)
    torch.testing.assert_close(got, x[:, :width].to(dtype), rtol=0, atol=0, equal_nan=True)
    assert cuda_ops.cast(x, torch.float32) is x


# ---- products -----------------------------------------------------------------------------------------------------
# (rows, N, K): one of everything; less than a tile; tails of rows, outputs and K; each size of tile and more than one.
SHAPES = [(1, 1, 1), (2, 6, 7), (5, 34, 40), (8, 32, 256), (17, 48, 264), (33, 34, 1048), (70, 96, 136)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
def test_linear(either: Any, reference: Ops, rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, weight = randn(rows, k, dtype=dtype), (randn(n, k, seed=1) / k**0.5).to(dtype)
    packed, bias = either.pack_linear(weight), randn(n, seed=2)
    assert torch.equal(either.unpack_linear(packed), weight)
    y = x.float() @ weight.float().t()
    close(either.linear(x, packed), y.to(dtype))
    close(either.linear(x, packed, bias, out_dtype=torch.float32), y + bias)
    residual = randn(rows, n, seed=4)
    wanted = residual + y + bias
    either.linear_add_(residual, x, packed, bias)
    close(residual, wanted)


@pytest.mark.parametrize("act", list(Activation))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(either: Any, reference: Ops, dtype: torch.dtype, gated: bool, act: Activation) -> None:
    x, weight, bias = randn(9, 72, dtype=dtype), (randn(76, 72, seed=1) / 4).to(dtype), randn(76, seed=2)
    got = either.linear(x, either.pack_linear(weight, gated=gated), bias, act=act)
    wanted = reference.linear(x, reference.pack_linear(weight, gated=gated), bias, act=act)
    assert got.dtype == dtype
    # Where cuBLAS hands over bfloat16, gate and up are rounded before they are multiplied.
    torch.testing.assert_close(got, wanted, atol=5e-6 if dtype == torch.float32 else 0.05, rtol=2 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_an_invariant_row_has_the_same_bits_in_any_batch(cuda_ops: Any, dtype: torch.dtype) -> None:
    """Law 6, over every size of tile, and for rows that lie apart."""
    ops = with_invariant(cuda_ops, True)
    x, packed = randn(70, 520, dtype=dtype), ops.pack_linear(randn(40, 520, seed=1, dtype=dtype), gated=True)
    together = ops.linear(x, packed, act=Activation.SILU, out_dtype=torch.float32)
    for rows in (1, 8, 9, 33):
        assert torch.equal(ops.linear(x[:rows], packed, act=Activation.SILU, out_dtype=torch.float32), together[:rows])
    wide = torch.empty(70, 523, dtype=dtype)
    wide[:, :520] = x
    assert torch.equal(ops.linear(wide[:, :520], packed, act=Activation.SILU, out_dtype=torch.float32), together)


# Less than a chunk of K, fewer chunks than slices, more than the ring holds; tails everywhere.
@pytest.mark.parametrize(("rows", "n", "k"), [(3, 6, 8), (129, 34, 136), (70, 258, 1048)])
@pytest.mark.parametrize("gated", [False, True])
def test_the_tile_for_many_rows_has_the_bits_of_the_others(gated: bool, rows: int, n: int, k: int) -> None:
    ops = emulated_ops()
    for dtype in (torch.bfloat16, torch.float16):
        x, packed = randn(rows, k, dtype=dtype), ops.pack_linear(randn(n, k, seed=1, dtype=dtype), gated=gated)
        narrow, wide = (torch.full((rows, n // 2 if gated else n), float("nan")) for _ in range(2))
        for out, many in ((narrow, False), (wide, True)):
            ops._linear(out, x, packed.data, randn(n, seed=2), int(Activation.SILU), gated, False, many)  # type: ignore[attr-defined]
        assert torch.equal(narrow, wide)
        assert not narrow.isnan().any()


@pytest.mark.parametrize("order", ["descending", "random"])
def test_the_order_of_blocks_and_threads_changes_nothing(order: str) -> None:
    ops = with_invariant(emulated_ops(), True)
    x, weight = randn(19, 80, dtype=torch.bfloat16), randn(70, 80, seed=1, dtype=torch.bfloat16)
    norm = randn(80, seed=2)

    def compute() -> list[Tensor]:
        return [ops.linear(x, ops.pack_linear(weight)), ops.rms_norm(x.float(), norm, 1e-6, torch.bfloat16)]

    before = compute()
    with emulated_order(order):
        after = compute()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_refusals_print_the_numbers(either: Any) -> None:
    with pytest.raises(ValueError, match="a gated weight has 3 rows"):
        either.pack_linear(torch.zeros(3, 4), gated=True)
    with pytest.raises(TypeError):
        either.linear(torch.zeros(1, 4), either.pack_linear(torch.zeros(3, 4, dtype=torch.bfloat16)))
    with pytest.raises(ValueError, match="a gated weight"):
        either.embedding(torch.zeros(1, dtype=torch.int32), either.pack_linear(torch.zeros(4, 4), gated=True))
