"""Weights of 4 and 8 bits on CUDA, emulated or (marked gpu) a device: against the reference, and law 6 to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, Ops, QuantizedLinear, QuantizedWeight
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.ops.reference_quantized import dequantize, rounded_rows
from tests.ops.quantized import KINDS, Kind, random_weight
from tests.support.cuda import emulated_ops, emulated_order

REFERENCE = ReferenceOps()
FLOAT, INT8, LLM_INT8 = Activations.FLOAT, Activations.INT8, Activations.LLM_INT8
TYPES = [torch.float32, torch.bfloat16, torch.float16]
CHANNELS = Kind(8, 0, True)
# Every kernel instance, by what is multiplied: all kinds with float activations, all with int8, LLM.int8().
EVERY = [*((FLOAT, kind) for kind in KINDS), *((INT8, kind) for kind in KINDS), (LLM_INT8, CHANNELS)]
# Of these one each that differs in its sums: groups scaled every 32 and every 128, whole rows, int8 by group and row.
SOME = [
    (FLOAT, Kind(4, 32, False)),
    (FLOAT, Kind(4, 128, False)),
    (FLOAT, Kind(8, 0, True)),
    (INT8, Kind(4, 64, False)),
    (INT8, Kind(8, 0, False)),
    (LLM_INT8, CHANNELS),
]
every_case = pytest.mark.parametrize(("activations", "kind"), EVERY, ids=lambda x: getattr(x, "name", str(x)).lower())
some_cases = pytest.mark.parametrize(("activations", "kind"), SOME, ids=lambda x: getattr(x, "name", str(x)).lower())


def rows_of(count: int, width: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """[count, width] with a few outliers, contiguous."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    x[::2, width // 3] = 11.0
    x[::3, width - 1] = -7.5
    return x.to(dtype)


def reference_product(x: Tensor, packed: QuantizedLinear, **options: Any) -> Tensor:
    """By the reference, which packs for itself; it takes float16 as float32, exactly."""
    x = x.float() if x.dtype == torch.float16 else x
    return REFERENCE.linear(x, packed, out_dtype=torch.float32, **options)


def assert_close(got: Tensor, x: Tensor, weight: QuantizedWeight, packed: QuantizedLinear) -> None:
    """Within the rounding of a float32 sum of x * w, which an asymmetric weight takes of codes and offsets apart."""
    zero = 1 << (weight.bits - 1)
    size = weight.scales.double().amax(1) * (weight.codes.double() - zero).abs().amax(1)
    if weight.offsets is not None:
        size += (weight.offsets.double() + zero * weight.scales.double()).abs().amax(1)
    bound = 6e-7 * x.double().abs().sum(1, keepdim=True) * size + 1e-7
    error = (got.double() - reference_product(x, packed).double()).abs()
    assert (error <= bound).all(), f"off by up to {(error / bound).max():.2f} of what rounding explains"


@contextmanager
def sliced(ops: Any, units: int) -> Iterator[None]:
    """K is cut every 64 `units`, as a larger weight's would be."""
    ops = getattr(ops, "_ops", ops)  # of a device's ops, those behind the ones for tests
    ops._quantized_slice = units
    try:
        yield
    finally:
        ops._quantized_slice = 0


# ---- layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_pack_round_trip(cuda_ops: Ops, kind: Kind, gated: bool) -> None:
    for n, k in [(2, 1), (30, 7), (34, 33), (100, 131), (64, 160)]:
        weight = random_weight(kind, n, k)
        back = cuda_ops.unpack_quantized(cuda_ops.pack_quantized(weight, FLOAT, gated=gated))
        assert torch.equal(back.codes, weight.codes)
        assert torch.equal(back.scales, weight.scales)
        assert (back.offsets is None) == kind.symmetric
        assert weight.offsets is None or torch.equal(back.offsets, weight.offsets)
        assert (back.bits, back.group_size) == (kind.bits, kind.group_size)


@pytest.mark.parametrize("kind", [Kind(4, 32, False), Kind(8, 64, True), Kind(8, 0, False)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_packed_layout(kind: Kind, gated: bool) -> None:
    """Byte for byte as csrc/cuda/quantized.h draws it."""
    n, k, units, planes = 38, 150, 3, kind.bits // 4
    weight = random_weight(kind, n, k)
    data = emulated_ops().pack_quantized(weight, FLOAT, gated=gated).data
    groups = 3 if kind.group_size == 64 else 6 if kind.group_size else 1
    dtype = weight.scales.dtype
    factors = groups * 16 * dtype.itemsize
    codes_end = units * planes * 512
    width = codes_end + factors * (1 if kind.symmetric else 2)
    assert data.shape == (4 if gated else 3, -(-width // 128) * 128)
    for tile in range(len(data)):
        words = data[tile, :codes_end].contiguous().view(torch.int32).view(units, planes, 32, 4).tolist()
        tables = data[tile, codes_end:width].contiguous().view(dtype).view(-1, groups, 8, 2)
        for row in range(16):
            plain = (tile % 2 * 19 + tile // 2 * 16 + row) if gated else tile * 16 + row
            real = tile // 2 * 16 + row < 19 if gated else plain < n
            g, upper = row % 8, row // 8
            for column in range(units * 64):
                unit, h, t, f, e = column // 64, column // 32 % 2, column // 8 % 4, column // 4 % 2, column % 2
                shift = 4 * (upper + 2 * (column // 2 % 2) + 4 * e)
                code = sum((words[unit][p][4 * g + t][2 * h + f] >> shift & 15) << 4 * p for p in range(planes))
                assert code == (weight.codes[plain, column] if real and column < k else 1 << (kind.bits - 1))
            for table, plain_factors in zip(tables, (weight.scales, weight.offsets), strict=False):
                assert plain_factors is not None
                wanted = torch.zeros(groups, dtype=dtype)
                if real:
                    wanted[: plain_factors.shape[1]] = plain_factors[plain]
                assert torch.equal(table[:, g, upper], wanted)


# ---- products ---------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_matches_the_reference(cuda_ops: Ops, activations: Activations, kind: Kind, dtype: torch.dtype) -> None:
    """Shapes with a short last group, tile, unit and slice; rows for every width of a block."""
    for n, k, rows in [(1, 1, 1), (31, 33, 9), (17, 160, 17), (33, 77, 40), (40, 1100, 3)]:
        weight = random_weight(kind, n, k)
        packed, wanted = (ops.pack_quantized(weight, activations) for ops in (cuda_ops, REFERENCE))
        x = rows_of(rows, k, dtype)
        got = cuda_ops.linear(x, packed, out_dtype=torch.float32)
        assert_close(got, x, weight, wanted)
        assert torch.equal(cuda_ops.linear(x, packed), got.to(dtype))


@some_cases
def test_a_row_never_depends_on_its_batch(cuda_ops: Ops, activations: Activations, kind: Kind) -> None:
    """Alone, and in batches for every width of a block, the last in two launches."""
    n, k = 34, 1100
    bias = torch.randn(n)
    for dtype in TYPES:
        x = rows_of(131, k, dtype)
        packed = cuda_ops.pack_quantized(random_weight(kind, n, k), activations, gated=True)
        some = (0, 1, 8, 33, 64, 130)
        alone = {i: cuda_ops.linear(x[i : i + 1], packed, bias, act=Activation.SILU) for i in some}
        for rows in (2, 9, 17, 34, 131):
            batch = cuda_ops.linear(x[:rows], packed, bias, act=Activation.SILU)
            for i, row in alone.items():
                assert i >= rows or torch.equal(batch[i : i + 1], row), f"row {i} of {rows}"
        batch = cuda_ops.linear(x[64:], packed, bias, act=Activation.SILU)
        assert torch.equal(batch[:1], alone[64])
        assert torch.equal(batch[-1:], alone[130])


@some_cases
@pytest.mark.parametrize("units", [16, 40])
def test_long_slices(cuda_ops: Ops, activations: Activations, kind: Kind, units: int) -> None:
    """As of a weight with many outputs: x comes in several chunks a slice, or there is one slice."""
    n, k = 20, 2240
    weight = random_weight(kind, n, k)
    packed, wanted = (ops.pack_quantized(weight, activations) for ops in (cuda_ops, REFERENCE))
    x = rows_of(33, k)
    with sliced(cuda_ops, units):
        whole = cuda_ops.linear(x, packed, out_dtype=torch.float32)
        assert_close(whole, x, weight, wanted)
        for rows in (1, 9, 17):
            assert torch.equal(cuda_ops.linear(x[:rows], packed, out_dtype=torch.float32), whole[:rows])


@pytest.mark.parametrize(
    "kind", [Kind(4, 32, True), Kind(4, 128, False), Kind(8, 0, True), Kind(8, 64, False)], ids=str
)
@pytest.mark.parametrize("activations", [FLOAT, INT8])
@pytest.mark.parametrize("act", list(Activation))
def test_bias_activation_gate_and_sum(cuda_ops: Ops, activations: Activations, kind: Kind, act: Activation) -> None:
    """25 gate and 25 up rows: the last pair of tiles is part padding."""
    n, k = 50, 90
    weight, bias, residual = random_weight(kind, n, k), torch.randn(n), torch.randn(9, n)
    x = rows_of(9, k) * 0.3
    for gated in (False, True):
        packed, wanted = (ops.pack_quantized(weight, activations, gated=gated) for ops in (cuda_ops, REFERENCE))
        for given in (None, bias):
            got = cuda_ops.linear(x, packed, given, act=act, out_dtype=torch.float32)
            torch.testing.assert_close(got, reference_product(x, wanted, bias=given, act=act), rtol=2e-5, atol=5e-5)
    packed = cuda_ops.pack_quantized(weight, activations)
    cuda_ops.linear_add_(total := residual.clone(), x, packed, bias)
    assert torch.equal(total, residual + cuda_ops.linear(x, packed, bias, out_dtype=torch.float32))


@some_cases
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_may_be_strided_and_odd(cuda_ops: Ops, activations: Activations, kind: Kind, dtype: torch.dtype) -> None:
    """Loads of 16 bytes, and one by one where a row doesn't allow them, give the same bits."""
    packed = cuda_ops.pack_quantized(random_weight(kind, 33, 136), activations)
    wide = rows_of(5, 200, dtype)
    for start in (1, 2, 8):
        view = wide[:, start : start + 136]
        assert torch.equal(cuda_ops.linear(view, packed), cuda_ops.linear(view.contiguous(), packed))


@some_cases
def test_a_broken_row_breaks_no_other(cuda_ops: Ops, activations: Activations, kind: Kind) -> None:
    packed = cuda_ops.pack_quantized(random_weight(kind, 40, 576), activations)
    x = rows_of(9, 576)
    before = cuda_ops.linear(x, packed)
    x[2, 575], x[7, 0] = torch.nan, torch.inf
    after = cuda_ops.linear(x, packed)
    whole = [0, 1, 3, 4, 5, 6, 8]
    assert torch.equal(after[whole], before[whole])
    assert after[2].isnan().all()
    assert not after[7].isfinite().any()


@some_cases
def test_zeros_and_no_rows(cuda_ops: Ops, activations: Activations, kind: Kind) -> None:
    bias = torch.randn(33)
    packed = cuda_ops.pack_quantized(random_weight(kind, 33, 70), activations)
    x = torch.zeros(2, 70)
    x[1, 5] = 1e-40
    out = cuda_ops.linear(x, packed, bias)
    assert torch.equal(out[0], bias)
    torch.testing.assert_close(out[1], bias, rtol=0, atol=1e-30)
    assert cuda_ops.linear(torch.empty(0, 70), packed).shape == (0, 33)


@some_cases
@pytest.mark.parametrize("order", ["descending", "random"])
def test_blocks_may_come_in_any_order(activations: Activations, kind: Kind, order: str) -> None:
    ops = emulated_ops()
    packed = ops.pack_quantized(random_weight(kind, 300, 1100), activations)
    for rows in (1, 20):
        x = rows_of(rows, 1100)
        wanted = ops.linear(x, packed)
        with emulated_order(order):
            assert torch.equal(ops.linear(x, packed), wanted)
    assert not ops._quantized_counters.any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_rows_meet_floats(cuda_ops: Any, monkeypatch: pytest.MonkeyPatch, kind: Kind, dtype: torch.dtype) -> None:
    """What cuBLAS is given are the weights rounded once, and only where law 6 was not asked for."""
    monkeypatch.setattr("octavo_engine.ops.cuda_quantized._ROWS_FOR_FLOATS", 5)
    for n, k, gated in [(34, 77, True), (17, 136, False), (17, 136, True)]:
        n += n % 2 if gated else 0
        weight, bias, x = random_weight(kind, n, k), torch.randn(n), rows_of(5, k, dtype)
        packed = cuda_ops.pack_quantized(weight, FLOAT, gated=gated)
        rounded = dequantize(weight).float().to(dtype)
        assert torch.equal(cuda_ops._in_floats(x, packed).data.cpu(), rounded)
        assert cuda_ops._in_floats(x[:4], packed) is packed
        assert cuda_ops._in_floats(x.float(), packed) is packed
        wanted = cuda_ops.linear(x, cuda_ops.pack_linear(rounded, gated=gated), bias, out_dtype=torch.float32)
        assert torch.equal(cuda_ops.linear(x, packed, bias, out_dtype=torch.float32), wanted)
    monkeypatch.setattr(getattr(cuda_ops, "_ops", cuda_ops), "invariant", True)
    assert cuda_ops._in_floats(x, packed) is packed


# ---- int8 activations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_activations_are_rounded_as_defined(cuda_ops: Ops, dtype: torch.dtype) -> None:
    """A weight that is the identity shows x as the kernel sees it: bit for bit the reference's rounded rows."""
    k = 70
    codes = torch.full((k, k), 128, dtype=torch.uint8)
    codes.fill_diagonal_(129)
    packed = cuda_ops.pack_quantized(QuantizedWeight(codes, torch.ones(k, 1), None, 8, 0), INT8)
    x = torch.randn(20, k) * 10 ** torch.randn(20, 1)
    x[3] = torch.arange(k) - 35  # ties
    x[5, :32] = 3.0
    x = x.to(dtype)
    got = cuda_ops.linear(x, packed, out_dtype=torch.float32)
    assert torch.equal(got, rounded_rows(x).float())


def test_llm_int8_keeps_outliers_in_float(cuda_ops: Ops) -> None:
    torch.manual_seed(5)
    weight, bias, x = random_weight(CHANNELS, 50, 131), torch.randn(50), torch.randn(9, 131).clamp(-5, 5)
    x[0, 3], x[0, 130], x[4, 70], x[5, 0] = 60.0, -6.0, 5.9999, 6.0
    x[7] = 10.0  # nothing is left for int8
    packed = cuda_ops.pack_quantized(weight, LLM_INT8, threshold=6.0)
    outliers = torch.where(x.abs() >= 6, x, 0).double()
    inner = x.double() - outliers
    absmax = inner.abs().amax(1, keepdim=True).float()
    inverse = torch.where(absmax > 0, torch.full_like(absmax, 127) / absmax, 0)
    rounded = (inner.float() * inverse).round().double() * (absmax / 127).double()
    want = (rounded + outliers) @ dequantize(weight).T + bias.double()
    torch.testing.assert_close(cuda_ops.linear(x, packed, bias).double(), want, rtol=1e-6, atol=2e-5)
    # The threshold matters: with one that nothing reaches, the row's one scale is coarse.
    coarse = cuda_ops.linear(x[:1], replace(packed, threshold=100.0), bias).double()
    assert (coarse - want[:1]).abs().max() > 1e-2


# ---- everything else --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_embedding(cuda_ops: Ops, kind: Kind) -> None:
    weight = random_weight(kind, 50, 133)
    packed = cuda_ops.pack_quantized(weight, FLOAT)
    ids = torch.tensor([0, 49, 3, 3, 24], dtype=torch.int32)
    want = dequantize(weight)[ids.long()].float() * 1.5
    assert torch.equal(cuda_ops.embedding(ids, packed, 1.5), want)
    assert cuda_ops.embedding(ids[:0], packed).shape == (0, 133)
    beyond = cuda_ops.embedding(torch.tensor([50, 7, -1], dtype=torch.int32), packed)
    assert beyond.isnan().any(1).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="gated"):
        cuda_ops.embedding(ids, cuda_ops.pack_quantized(weight, FLOAT, gated=True))


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, 32, False), (4, 128, True), (8, 0, True)])
def test_quantize_is_the_references(
    cuda_ops: Ops, monkeypatch: pytest.MonkeyPatch, bits: int, group_size: int, symmetric: bool
) -> None:
    monkeypatch.setattr("octavo_engine.ops.cuda_quantized._ROUNDED_AT_ONCE", 1000)  # seven rows
    weights = [torch.randn(20, 140), torch.randn(5, 140).bfloat16()]
    got, want = (
        ops.quantize(weights, bits=bits, group_size=group_size, symmetric=symmetric) for ops in (cuda_ops, REFERENCE)
    )
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.scales, want.scales)
    assert (got.offsets is None) == (want.offsets is None) == symmetric
    assert got.offsets is None or want.offsets is None or torch.equal(got.offsets, want.offsets)


def test_slices_depend_on_the_weight_alone() -> None:
    """Units of 64 of K a slice, for the layers of an 8B model, its head and a small model."""
    plan = emulated_ops()._quantized_plan

    def slice_of(rows: int, n: int, k: int) -> int:
        return int(plan(rows, n, k, 4, 128, True, int(FLOAT), False, 0)[0])

    wanted = {(6144, 4096): 8, (4096, 4096): 8, (28672, 4096): 32, (4096, 14336): 16, (128256, 4096): 64, (576, 576): 8}
    for rows in (1, 9, 64, 5000):
        assert {shape: slice_of(rows, *shape) for shape in wanted} == wanted


def test_refusals_print_the_numbers(cuda_ops: Ops) -> None:
    weight = random_weight(Kind(4, 32, True), 16, 40)
    packed = cuda_ops.pack_quantized(weight, FLOAT)
    with pytest.raises(ValueError, match=r"packed weight has shape \[1, 640\], expected \[1, 1152\]"):
        cuda_ops.linear(torch.randn(2, 65), packed)
    with pytest.raises(ValueError, match=r"bias has shape \[15\], expected \[16\]"):
        cuda_ops.linear(torch.randn(2, 40), packed, torch.randn(15))
    with pytest.raises(ValueError, match="column stride 2, not 1"):
        cuda_ops.linear(torch.randn(2, 80)[:, ::2], packed)
    with pytest.raises(ValueError, match="gated weight has 15 rows; it must be even"):
        cuda_ops.pack_quantized(random_weight(Kind(4, 32, True), 15, 8), FLOAT, gated=True)
    with pytest.raises(ValueError, match="group_size is 48; allowed: 32, 64, 128, or 0"):
        cuda_ops.pack_quantized(replace(weight, group_size=48), FLOAT)
    with pytest.raises(ValueError, match="has 5 bits; allowed: 4, 8"):
        cuda_ops.pack_quantized(replace(weight, bits=5), FLOAT)
    with pytest.raises(ValueError, match=r"scales has shape \[16, 2\], expected \[16, 1\]"):
        cuda_ops.pack_quantized(replace(weight, group_size=64), FLOAT)
    with pytest.raises(TypeError, match="scales is float32; group_size 32 takes float16"):
        cuda_ops.pack_quantized(replace(weight, scales=weight.scales.float()), FLOAT)
    with pytest.raises(ValueError, match="LLM_INT8 takes 8 bits, group_size 0, symmetric; got 4 bits, group_size 32"):
        cuda_ops.pack_quantized(weight, LLM_INT8)
    with pytest.raises(TypeError, match="residual is bfloat16, not float32"):
        cuda_ops.linear_add_(torch.zeros(2, 16).bfloat16(), torch.randn(2, 40), packed)
