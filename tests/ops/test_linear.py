"""Linear layers on every instruction set: against plain torch at awkward shapes, and law 6 to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from octavo_engine.ops import Activation, OpsUnavailable, PackedLinear
from octavo_engine.ops.cpu import CpuOps, load_library

ISAS = ["portable", "avx2", "avx512"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 7, 17, 64, 65]


@pytest.fixture(params=ISAS)
def ops(request: pytest.FixtureRequest) -> Iterator[CpuOps]:
    load_library()  # a missing library fails; only an instruction set that is not here is skipped
    try:
        yield CpuOps(isa=request.param, num_threads=2)
    except OpsUnavailable as error:
        pytest.skip(str(error))
    finally:
        CpuOps()


def activations(rows: int, width: int, weight_dtype: torch.dtype) -> torch.Tensor:
    dtype = torch.bfloat16 if weight_dtype == torch.bfloat16 else torch.float32
    return torch.randn(rows, width).to(dtype)


def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


FUNCTIONS = {
    Activation.NONE: lambda x: x,
    Activation.RELU: F.relu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.SILU: F.silu,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (31, 77), (32, 64), (100, 131), (192, 96)])
def test_matches_float64(ops: CpuOps, dtype: torch.dtype, rows: int, n: int, k: int) -> None:
    torch.manual_seed(rows * n + k)
    weight, x, bias = torch.randn(n, k).to(dtype), activations(rows, k, dtype), torch.randn(n)
    packed = ops.pack_linear(weight)
    want = expected(x, weight, bias)
    out = ops.linear(x, packed, bias, out_dtype=torch.float32)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=2e-5)
    same_type = ops.linear(x, packed, bias)
    assert same_type.dtype == x.dtype
    assert torch.equal(same_type, out.to(x.dtype))
    residual = torch.randn(rows, n)
    ops.linear_add_(total := residual.clone(), x, packed, bias)
    torch.testing.assert_close(total, residual + out, rtol=0, atol=1e-6)


@pytest.mark.parametrize("act", list(Activation))
@pytest.mark.parametrize("gated", [False, True])
def test_activations(ops: CpuOps, act: Activation, gated: bool) -> None:
    torch.manual_seed(1)
    # 50 gate and 50 up rows: the last panel is part padding on both sides.
    weight, x, bias = torch.randn(100, 24), torch.randn(9, 24) * 2, torch.randn(100)
    packed = ops.pack_linear(weight, gated=gated)
    out = ops.linear(x, packed, bias, act=act)
    plain = expected(x, weight, bias)
    want = FUNCTIONS[act](plain[:, :50]) * plain[:, 50:] if gated else FUNCTIONS[act](plain)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=5e-5)


def test_activations_at_the_ends_of_the_range(ops: CpuOps) -> None:
    points = torch.tensor([-1e30, -200.0, -88.0, -20.0, -1e-3, -0.0, 0.0, 1e-30, 1e-3, 20.0, 88.0, 200.0, 1e30])
    identity = ops.pack_linear(torch.eye(1))
    for act, function in FUNCTIONS.items():
        out = ops.linear(points[:, None], identity, act=act)[:, 0]
        torch.testing.assert_close(out, function(points.double()).float(), rtol=1e-5, atol=2e-7)
        assert torch.isnan(ops.linear(torch.full((1, 1), torch.nan), identity, act=act)).all() or act == Activation.RELU


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (30, 7), (64, 64), (98, 129)])
def test_pack_round_trip(ops: CpuOps, dtype: torch.dtype, gated: bool, n: int, k: int) -> None:
    weight = torch.randn(n, k).to(dtype)
    packed = ops.pack_linear(weight, gated=gated)
    assert packed.data.data_ptr() % 64 == 0
    assert torch.equal(ops.unpack_linear(packed), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_layout(ops: CpuOps, dtype: torch.dtype) -> None:
    """[panel, k / p, lane, p] as PackedLinear draws it, zeros in the padding."""
    n, k = 50, 9
    weight = torch.randn(n, k).to(dtype)
    p = 2 if dtype == torch.bfloat16 else 1
    padded = torch.zeros(64, (k + p - 1) // p * p, dtype=dtype)
    padded[:n, :k] = weight
    want = padded.view(2, 32, -1, p).transpose(1, 2)
    assert torch.equal(ops.pack_linear(weight).data, want)
    gate, up = torch.zeros(2, 16, padded.shape[1], dtype=dtype), torch.zeros(2, 16, padded.shape[1], dtype=dtype)
    gate.view(32, -1)[:25, :k], up.view(32, -1)[:25, :k] = weight[:25], weight[25:]
    want = torch.cat([gate, up], dim=1).view(2, 32, -1, p).transpose(1, 2)
    assert torch.equal(ops.pack_linear(weight, gated=True).data, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(100, 131), (64, 576), (40, 1024)])
def test_a_row_never_depends_on_its_batch(ops: CpuOps, dtype: torch.dtype, n: int, k: int) -> None:
    """k = 1024: rows 2 KiB apart are packed in a batch and read as they lie alone."""
    torch.manual_seed(2)
    weight, x, bias = torch.randn(n, k).to(dtype), activations(65, k, dtype), torch.randn(n)
    for gated, act in ((False, Activation.NONE), (False, Activation.SILU), (True, Activation.SILU)):
        packed = ops.pack_linear(weight, gated=gated)
        alone = torch.cat([ops.linear(row[None], packed, bias, act=act) for row in x])
        for num_threads in (1, 2, 3):
            threaded = CpuOps(isa=ops.isa, num_threads=num_threads)
            for rows in (2, 12, 13, 64, 65):
                batch = threaded.linear(x[:rows], packed, bias, act=act)
                assert torch.equal(batch, alone[:rows]), f"{rows} rows on {num_threads} threads"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_long_prompt_adds_as_it_would_alone(ops: CpuOps, dtype: torch.dtype) -> None:
    """Enough rows that every panel and chunk is claimed by itself, on up to three threads."""
    torch.manual_seed(4)
    weight, x, before = torch.randn(100, 576).to(dtype), activations(331, 576, dtype), torch.randn(331, 100)
    packed = ops.pack_linear(weight)
    ops.linear_add_(together := before.clone(), x, packed)
    for row in (0, 11, 12, 165, 166, 330):
        ops.linear_add_(single := before[row : row + 1].clone(), x[row : row + 1], packed)
        assert torch.equal(single, together[row : row + 1]), f"row {row}"
    for num_threads in (1, 2, 3):
        CpuOps(isa=ops.isa, num_threads=num_threads).linear_add_(total := before.clone(), x, packed)
        assert torch.equal(total, together), f"{num_threads} threads"


def test_wide_rows_are_cut_in_chunks_without_a_trace(ops: CpuOps) -> None:
    """A chunk of rows that would not fit L2 is computed in parts."""
    torch.manual_seed(3)
    weight, x = torch.randn(40, 6000), torch.randn(100, 6000)
    packed = ops.pack_linear(weight)
    out = ops.linear(x, packed)
    torch.testing.assert_close(out.double(), expected(x, weight, None), rtol=1e-5, atol=1e-3)
    assert torch.equal(ops.linear(x[77:78], packed), out[77:78])


def test_rows_may_be_strided(ops: CpuOps) -> None:
    wide = torch.randn(5, 100).bfloat16()
    packed = ops.pack_linear(torch.randn(33, 40).bfloat16())
    view = wide[:, 11:51]
    assert torch.equal(ops.linear(view, packed), ops.linear(view.contiguous(), packed))


def test_no_rows(ops: CpuOps) -> None:
    assert ops.linear(torch.empty(0, 8), ops.pack_linear(torch.randn(16, 8))).shape == (0, 16)


@pytest.mark.parametrize("table_dtype", DTYPES)
def test_embedding(ops: CpuOps, table_dtype: torch.dtype) -> None:
    table = torch.randn(50, 37).to(table_dtype)
    ids = torch.tensor([0, 49, 3, 3], dtype=torch.int32)
    assert torch.equal(ops.embedding(ids, table, 1.5), table[ids.long()].float() * 1.5)
    with pytest.raises(ValueError, match=r"ids\[1\] is 50; the table has 50 rows"):
        ops.embedding(torch.tensor([0, 50], dtype=torch.int32), table)


def test_refusals_print_the_numbers(ops: CpuOps) -> None:
    packed = ops.pack_linear(torch.randn(16, 8))
    with pytest.raises(ValueError, match=r"packed weight has shape \[1, 8, 32, 1\], expected \[1, 9, 32, 1\]"):
        ops.linear(torch.randn(2, 9), packed)
    with pytest.raises(TypeError, match="x is bfloat16; a float32 weight takes float32"):
        ops.linear(torch.randn(2, 8).bfloat16(), packed)
    with pytest.raises(ValueError, match=r"bias has shape \[15\], expected \[16\]"):
        ops.linear(torch.randn(2, 8), packed, torch.randn(15))
    with pytest.raises(ValueError, match="must be even"):
        ops.pack_linear(torch.randn(15, 8), gated=True)
    with pytest.raises(ValueError, match="column stride 2, not 1"):
        ops.linear(torch.randn(2, 16)[:, ::2], packed)
    with pytest.raises(TypeError, match="packed weight is float64"):
        ops.linear(torch.randn(2, 8), PackedLinear(packed.data.double(), 16, 8))
