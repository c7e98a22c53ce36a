"""Float activations on 4 and 8 bit weights, on every instruction set: against the reference, and law 6 to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, OpsUnavailable, QuantizedLinear
from octavo_engine.ops.cpu import CpuOps, load_library
from octavo_engine.ops.reference import ReferenceOps
from tests.ops.quantized import KINDS, Kind, random_weight

REFERENCE = ReferenceOps()
FLOAT = Activations.FLOAT
SIZES = [(1, 1), (31, 33), (64, 300), *product((1, 17, 33, 100), (7, 31, 77, 131, 160))]
ROWS = [1, 2, 7, 17, 65]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["portable", "avx2", "avx512"])
def ops(request: pytest.FixtureRequest) -> Iterator[CpuOps]:
    load_library()  # a missing library fails; only an instruction set that is not here is skipped
    try:
        yield CpuOps(isa=request.param, num_threads=2)
    except OpsUnavailable as error:
        pytest.skip(str(error))
    finally:
        CpuOps()


def rows_of(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[count, width], its rows apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width + 5, generator=generator).to(dtype)[:, 2 : width + 2]


def assert_close(got: Tensor, x: Tensor, packed: QuantizedLinear, want: Tensor) -> None:
    """Within the rounding of a float32 sum of x * w, which an asymmetric weight takes of codes and offsets apart."""
    weight = REFERENCE.unpack_quantized(packed)
    zero = 1 << (weight.bits - 1) if weight.offsets is None else 0
    size = weight.scales.double().amax(1) * (weight.codes.double() - zero).abs().amax(1)
    if weight.offsets is not None:
        size += weight.offsets.double().abs().amax(1)
    bound = 4e-7 * x.double().abs().sum(1, keepdim=True) * size + 1e-7
    error = (got.double() - want.double()).abs()
    assert (error <= bound).all(), f"off by up to {(error / bound).max():.2f} of what rounding explains"


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference(ops: CpuOps, kind: Kind, dtype: torch.dtype) -> None:
    for n, k in SIZES:
        packed = ops.pack_quantized(random_weight(kind, n, k), FLOAT)
        everything = rows_of(max(ROWS), k, dtype)
        wanted = REFERENCE.linear(everything, packed, out_dtype=torch.float32)
        for rows in ROWS:
            x = everything[-rows:]
            got = ops.linear(x, packed, out_dtype=torch.float32)
            assert_close(got, x, packed, wanted[-rows:])
            assert torch.equal(ops.linear(x, packed), got.to(dtype))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_packs_as_the_reference_byte_for_byte(ops: CpuOps, kind: Kind) -> None:
    for n, k in [(2, 1), (34, 33), (100, 131)]:
        weight = random_weight(kind, n, k)
        for gated in (False, True):
            want = REFERENCE.pack_quantized(weight, FLOAT, gated=gated)
            assert torch.equal(ops.pack_quantized(weight, FLOAT, gated=gated).data, want.data)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_never_depends_on_its_batch(ops: CpuOps, kind: Kind, dtype: torch.dtype) -> None:
    """Alone, in batches that end in every kind of block, on one and more threads."""
    n, k = 100, 277
    x, bias = rows_of(150, k, dtype), torch.randn(n)
    for gated in (False, True):
        packed = ops.pack_quantized(random_weight(kind, n, k), FLOAT, gated=gated)
        alone = torch.cat([ops.linear(row[None], packed, bias, act=Activation.SILU) for row in x])
        for num_threads in (1, 2, 3):
            threaded = CpuOps(isa=ops.isa, num_threads=num_threads)
            for rows in (*range(2, 12), 24, 65, 73, 150):
                batch = threaded.linear(x[:rows], packed, bias, act=Activation.SILU)
                assert torch.equal(batch, alone[:rows]), f"{rows} rows on {num_threads} threads"


@pytest.mark.parametrize("kind", [Kind(4, 32, False), Kind(4, 128, True), Kind(8, 0, True)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_no_cache_holds_at_once(ops: CpuOps, kind: Kind, dtype: torch.dtype) -> None:
    """Cut in chunks; an odd number of panels, the last of them part padding."""
    n, k = 67, 600
    x, packed = rows_of(700, k, dtype), ops.pack_quantized(random_weight(kind, n, k), FLOAT)
    together = ops.linear(x, packed, out_dtype=torch.float32)
    assert_close(together, x, packed, REFERENCE.linear(x, packed, out_dtype=torch.float32))
    assert torch.equal(torch.cat([ops.linear(part, packed, out_dtype=torch.float32) for part in x.split(9)]), together)


@pytest.mark.parametrize(
    "kind", [Kind(4, 32, True), Kind(4, 64, False), Kind(8, 0, True), Kind(8, 128, False)], ids=str
)
@pytest.mark.parametrize("act", list(Activation))
def test_bias_activation_gate_and_sum(ops: CpuOps, kind: Kind, act: Activation) -> None:
    """50 gate and 50 up rows: the last panel is part padding on both sides."""
    weight, bias = random_weight(kind, 100, 90), torch.randn(100)
    x, residual = rows_of(9, 90, torch.bfloat16), torch.randn(9, 100)
    for gated in (False, True):
        packed = ops.pack_quantized(weight, FLOAT, gated=gated)
        got = ops.linear(x, packed, bias, act=act, out_dtype=torch.float32)
        want = REFERENCE.linear(x, packed, bias, act=act, out_dtype=torch.float32)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=5e-5)
        for rows in (4, 9):
            assert torch.equal(ops.linear(x[:rows], packed, bias, act=act), got[:rows].bfloat16())
    packed = ops.pack_quantized(weight, FLOAT)
    for rows in (4, 9):
        ops.linear_add_(total := residual[:rows].clone(), x[:rows], packed, bias)
        assert torch.equal(total, residual[:rows] + ops.linear(x[:rows], packed, bias, out_dtype=torch.float32))


def test_a_broken_row_breaks_no_other(ops: CpuOps) -> None:
    for kind in (Kind(4, 32, True), Kind(8, 64, False)):
        packed = ops.pack_quantized(random_weight(kind, 40, 50), FLOAT)
        for dtype in DTYPES:
            x = torch.randn(9, 50).to(dtype)
            before = ops.linear(x, packed)
            x[2, 49], x[7, 0] = torch.nan, torch.inf
            after = ops.linear(x, packed)
            whole = [0, 1, 3, 4, 5, 6, 8]
            assert torch.equal(after[whole], before[whole])
            assert after[2].isnan().all()
            assert not after[7].isfinite().any()


def test_no_rows(ops: CpuOps) -> None:
    packed = ops.pack_quantized(random_weight(KINDS[0], 40, 50), FLOAT)
    assert ops.linear(torch.empty(0, 50), packed).shape == (0, 40)
