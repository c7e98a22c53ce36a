"""Weights of 4 and 8 bits on every instruction set, with activations in int8: against float64, and law 6 to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.ops import Activation, Activations, OpsUnavailable, QuantizedWeight
from octavo_engine.ops.cpu import CpuOps, load_library

ISAS = ["portable", "avx2", "avx512"]
ROWS = [1, 2, 7, 17, 65]
OUTPUTS = [1, 17, 31, 33, 100]
WIDTHS = [1, 7, 31, 33, 77, 131, 160]
FUNCTIONS = {
    Activation.NONE: lambda x: x,
    Activation.RELU: F.relu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.SILU: F.silu,
}


@dataclass(frozen=True)
class Kind:
    bits: int
    group_size: int
    symmetric: bool

    def __str__(self) -> str:
        return f"int{self.bits}-g{self.group_size}-{'sym' if self.symmetric else 'asym'}"


KINDS = [Kind(b, g, s) for b in (4, 8) for g in (0, 32, 64, 128) for s in (True, False)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(params=ISAS)
def ops(request: pytest.FixtureRequest) -> Iterator[CpuOps]:
    load_library()  # a missing library fails; only an instruction set that is not here is skipped
    try:
        yield CpuOps(isa=request.param, num_threads=2)
    except OpsUnavailable as error:
        pytest.skip(str(error))
    finally:
        CpuOps()


def random_weight(kind: Kind, n: int, k: int) -> QuantizedWeight:
    """Every code occurs, the extremes too, which saturating multiplications would get wrong."""
    groups = (k + kind.group_size - 1) // kind.group_size if kind.group_size else 1
    dtype = torch.float16 if kind.group_size else torch.float32
    codes = torch.randint(0, 1 << kind.bits, (n, k), dtype=torch.uint8)
    codes[::3] = torch.where(torch.rand(codes[::3].shape) < 0.5, 0, (1 << kind.bits) - 1).to(torch.uint8)
    scales = (torch.rand(n, groups) * 0.1 + 0.01).to(dtype)
    offsets = None if kind.symmetric else (torch.randn(n, groups) * 0.2).to(dtype)
    return QuantizedWeight(codes, scales, offsets, kind.bits, kind.group_size)


def random_rows(rows: int, k: int) -> Tensor:
    x = torch.randn(rows, k)
    x[rows // 2] = torch.where(torch.rand(k) < 0.5, -3.0, 3.0)  # int8 -127 and 127 all along
    return x


def per_element(weight: QuantizedWeight, factors: Tensor) -> Tensor:
    k = weight.codes.shape[1]
    return factors.double().repeat_interleave(weight.group_size or k, dim=1)[:, :k]


def dequantised(weight: QuantizedWeight) -> Tensor:
    if weight.offsets is None:
        return (weight.codes.double() - (1 << (weight.bits - 1))) * per_element(weight, weight.scales)
    return weight.codes.double() * per_element(weight, weight.scales) + per_element(weight, weight.offsets)


def in_int8(x: Tensor, block: int = 32) -> tuple[Tensor, Tensor]:
    """The definition of Activations.INT8: (whole numbers, each one's scale), float32 steps, as float64."""
    rows, k = x.shape
    blocks = F.pad(x.float(), (0, -k % block)).view(rows, -1, block)
    amax = blocks.abs().amax(2, keepdim=True)
    # Not 127 / amax, which torch computes as a rounded reciprocal times 127.
    factor = torch.where(amax > 0, torch.full_like(amax, 127) / amax, 0)
    codes, scales = torch.round(blocks * factor).double(), (amax / 127).double().expand(blocks.shape)
    return codes.reshape(rows, -1)[:, :k], scales.reshape(rows, -1)[:, :k]


def expected(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None, block: int = 32) -> Tensor:
    """The definition in float64, whose integer part is exact."""
    codes, scale = in_int8(x, block)
    y = (scale * codes) @ dequantised(weight).T
    return y if bias is None else y + bias.double()


def tolerance(x: Tensor, weight: QuantizedWeight, block: int = 32) -> Tensor:
    """Of the float chain: some 2^-24 of what it adds up, a step."""
    codes, scale = in_int8(x, block)
    steps = weight.scales.shape[1] + -(-x.shape[1] // 32)
    magnitude = (scale * codes.abs()) @ (dequantised(weight).abs() + per_element(weight, weight.scales) * 8).T
    return magnitude * 2.0**-23 * (steps + 4) + 1e-6


def assert_close(out: Tensor, want: Tensor, allowed: Tensor) -> None:
    error = (out.double() - want).abs() - allowed
    assert error.max() <= 0, f"off by {(out.double() - want).abs().flatten()[error.argmax()]:.3e}"


@every_kind
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (30, 7), (34, 33), (100, 131), (64, 160)])
def test_pack_round_trip(ops: CpuOps, kind: Kind, gated: bool, n: int, k: int) -> None:
    weight = random_weight(kind, n, k)
    packed = ops.pack_quantized(weight, Activations.INT8, gated=gated)
    assert packed.data.data_ptr() % 64 == 0
    back = ops.unpack_quantized(packed)
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scales, weight.scales)
    assert (back.offsets is None) == kind.symmetric
    assert weight.offsets is None or torch.equal(back.offsets, weight.offsets)
    assert (back.bits, back.group_size) == (kind.bits, kind.group_size)


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_layout_of_4_bits(ops: CpuOps, symmetric: bool) -> None:
    """Lane n's byte i of a step of 8 k holds code[k + i] and code[k + 4 + i], as QuantizedLinear draws it."""
    weight = random_weight(Kind(4, 32, symmetric), 40, 41)
    data = ops.pack_quantized(weight, Activations.INT8).data
    factors = 64 if symmetric else 128
    assert data.shape == (2, (512 + factors) + (256 + factors))
    codes = F.pad(weight.codes, (0, 7), value=8)
    codes = torch.cat([codes, torch.zeros(24, 48, dtype=torch.uint8)]).view(2, 32, 6, 2, 4)
    bytes_ = (codes[:, :, :, 0] | codes[:, :, :, 1] << 4).transpose(1, 2).reshape(2, 6, 128)
    assert torch.equal(data[:, :512], bytes_[:, :4].flatten(1))
    assert torch.equal(data[:, 512 + factors : 768 + factors], bytes_[:, 4:].flatten(1))
    assert torch.equal(data[0, 512:576].view(torch.float16), weight.scales[:32, 0])
    assert torch.equal(data[1, 768 + factors : 832 + factors].view(torch.float16)[:8], weight.scales[32:, 1])
    if weight.offsets is not None:
        assert torch.equal(data[0, 576:640].view(torch.float16), weight.offsets[:32, 0])


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_layout_of_8_bits(ops: CpuOps, symmetric: bool) -> None:
    weight = random_weight(Kind(8, 0, symmetric), 40, 9)
    data = ops.pack_quantized(weight, Activations.INT8).data
    codes = F.pad(weight.codes, (0, 3), value=128)
    codes = torch.cat([codes, torch.zeros(24, 12, dtype=torch.uint8)]).view(2, 32, 3, 4)
    assert torch.equal(data[:, :384], codes.transpose(1, 2).flatten(1))
    assert torch.equal(data[0, 384:512].view(torch.float32), weight.scales[:32, 0])
    assert data.shape[1] == (512 if symmetric else 640)


@every_kind
@pytest.mark.parametrize("k", WIDTHS)
def test_matches_float64(ops: CpuOps, kind: Kind, k: int) -> None:
    torch.manual_seed(k)
    for n in OUTPUTS:
        weight, bias, all_rows = random_weight(kind, n, k), torch.randn(n), random_rows(max(ROWS), k)
        packed = ops.pack_quantized(weight, Activations.INT8)
        for rows in ROWS:
            x = all_rows[:rows]
            want, allowed = expected(x, weight, bias), tolerance(x, weight)
            assert_close(ops.linear(x, packed, bias), want, allowed)
        x = all_rows.bfloat16()
        out = ops.linear(x, packed, bias, out_dtype=torch.float32)
        assert_close(out, expected(x, weight, bias), tolerance(x, weight))
        assert torch.equal(ops.linear(x, packed, bias), out.bfloat16())
        residual = torch.randn(len(x), n)
        ops.linear_add_(total := residual.clone(), x, packed, bias)
        torch.testing.assert_close(total, residual + out, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Kind(4, 32, True), Kind(4, 128, False), Kind(8, 0, True)], ids=str)
@pytest.mark.parametrize("act", list(Activation))
@pytest.mark.parametrize("gated", [False, True])
def test_activations(ops: CpuOps, kind: Kind, act: Activation, gated: bool) -> None:
    torch.manual_seed(1)
    weight, x, bias = random_weight(kind, 100, 40), random_rows(9, 40) * 0.3, torch.randn(100)
    out = ops.linear(x, ops.pack_quantized(weight, Activations.INT8, gated=gated), bias, act=act)
    plain = expected(x, weight, bias)
    want = FUNCTIONS[act](plain[:, :50]) * plain[:, 50:] if gated else FUNCTIONS[act](plain)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(
    ("activations", "kind"),
    [
        *((Activations.INT8, kind) for kind in KINDS if kind.group_size != 64),
        (Activations.LLM_INT8, Kind(8, 0, True)),
    ],
    ids=str,
)
def test_a_row_never_depends_on_its_batch(ops: CpuOps, kind: Kind, activations: Activations) -> None:
    torch.manual_seed(2)
    weight, bias, x = random_weight(kind, 100, 333), torch.randn(100), random_rows(65, 333) * 3
    for gated in (False, True):
        packed = ops.pack_quantized(weight, activations, gated=gated)
        alone = torch.cat([ops.linear(row[None], packed, bias, act=Activation.SILU) for row in x])
        for num_threads in (1, 2, 3):
            threaded = CpuOps(isa=ops.isa, num_threads=num_threads)
            for rows in (2, 3, 5, 6, 7, 12, 13, 32, 33, 64, 65):
                batch = threaded.linear(x[:rows], packed, bias, act=Activation.SILU)
                assert torch.equal(batch, alone[:rows]), f"{rows} rows on {num_threads} threads"


@pytest.mark.parametrize("kind", [Kind(4, 32, True), Kind(4, 128, False), Kind(8, 0, True)], ids=str)
def test_a_row_of_a_long_prompt_adds_as_it_would_alone(ops: CpuOps, kind: Kind) -> None:
    torch.manual_seed(4)
    weight, x, before = random_weight(kind, 200, 576), random_rows(331, 576), torch.randn(331, 200)
    packed = ops.pack_quantized(weight, Activations.INT8)
    ops.linear_add_(together := before.clone(), x, packed)
    for row in (0, 11, 12, 165, 166, 330):
        ops.linear_add_(single := before[row : row + 1].clone(), x[row : row + 1], packed)
        assert torch.equal(single, together[row : row + 1]), f"row {row}"
    for num_threads in (1, 2, 3):
        CpuOps(isa=ops.isa, num_threads=num_threads).linear_add_(total := before.clone(), x, packed)
        assert torch.equal(total, together), f"{num_threads} threads"


@every_kind
def test_bfloat16_rows_together_are_quantised_as_alone(ops: CpuOps, kind: Kind) -> None:
    torch.manual_seed(6)
    # Two groups of 128 and half a one; rows of nothing, of what is too small, too large or no number.
    weight, x = random_weight(kind, 70, 320), random_rows(19, 320).bfloat16()
    x[1], x[2], x[3, 7], x[4, 300], x[5] = 0.0, 1e-38, float("inf"), float("nan"), x[5] * 1e30
    packed = ops.pack_quantized(weight, Activations.INT8)
    alone = torch.cat([ops.linear(row[None], packed, out_dtype=torch.float32) for row in x])
    for rows in (*range(2, 10), 19):
        together = ops.linear(x[:rows], packed, out_dtype=torch.float32)
        torch.testing.assert_close(together, alone[:rows], rtol=0, atol=0, equal_nan=True, msg=f"{rows} rows")


def test_llm_int8_keeps_outliers_in_float(ops: CpuOps) -> None:
    torch.manual_seed(5)
    weight, bias, x = random_weight(Kind(8, 0, True), 50, 131), torch.randn(50), torch.randn(9, 131)
    x[0, 3], x[0, 130], x[4, 70], x[5, 0] = 60.0, -6.0, 5.9999, float(6)
    x[7] = 10.0  # nothing is left for int8
    packed = ops.pack_quantized(weight, Activations.LLM_INT8, threshold=6.0)
    outliers = torch.where(x.abs() >= 6, x, 0)
    want = expected(x - outliers, weight, bias, block=131) + outliers.double() @ dequantised(weight).T
    allowed = (
        tolerance(x - outliers, weight, block=131) + outliers.double().abs() @ dequantised(weight).abs().T * 2.0**-20
    )
    assert_close(ops.linear(x, packed, bias), want, allowed)
    none = ops.linear(x, replace(packed, threshold=100.0), bias)
    assert_close(none, expected(x, weight, bias, block=131), tolerance(x, weight, block=131))


@pytest.mark.parametrize("activations", [Activations.INT8, Activations.LLM_INT8])
def test_zeros_and_broken_rows(ops: CpuOps, activations: Activations) -> None:
    weight, bias = random_weight(Kind(8, 0, True), 33, 70), torch.randn(33)
    packed = ops.pack_quantized(weight, activations)
    x = torch.zeros(4, 70)
    x[1, 69], x[2, 0], x[3, 5] = torch.nan, torch.inf, 1e-40
    out = ops.linear(x, packed, bias)
    assert torch.equal(out[0], bias)
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()
    torch.testing.assert_close(out[3], bias, rtol=0, atol=1e-30)


def test_rows_may_be_strided(ops: CpuOps) -> None:
    wide = torch.randn(5, 100).bfloat16()
    packed = ops.pack_quantized(random_weight(Kind(4, 32, True), 33, 40), Activations.INT8)
    view = wide[:, 11:51]
    assert torch.equal(ops.linear(view, packed), ops.linear(view.contiguous(), packed))


def test_no_rows(ops: CpuOps) -> None:
    packed = ops.pack_quantized(random_weight(Kind(4, 32, True), 16, 8), Activations.INT8)
    assert ops.linear(torch.empty(0, 8), packed).shape == (0, 16)


@every_kind
def test_embedding(ops: CpuOps, kind: Kind) -> None:
    weight = random_weight(kind, 50, 133)
    packed = ops.pack_quantized(weight, Activations.INT8)
    ids = torch.tensor([0, 49, 3, 3], dtype=torch.int32)
    want = dequantised(weight)[ids.long()] * 1.5
    torch.testing.assert_close(ops.embedding(ids, packed, 1.5).double(), want, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"ids\[1\] is 50; the table has 50 rows"):
        ops.embedding(torch.tensor([0, 50], dtype=torch.int32), packed)


def test_refusals_print_the_numbers(ops: CpuOps) -> None:
    weight = random_weight(Kind(4, 32, True), 16, 40)
    packed = ops.pack_quantized(weight, Activations.INT8)
    with pytest.raises(ValueError, match=r"packed weight has shape \[1, 768\], expected \[1, 896\]"):
        ops.linear(torch.randn(2, 41), packed)
    with pytest.raises(TypeError, match="x is float16; a quantised weight takes bfloat16 or float32"):
        ops.linear(torch.randn(2, 40).half(), packed)
    with pytest.raises(ValueError, match=r"bias has shape \[15\], expected \[16\]"):
        ops.linear(torch.randn(2, 40), packed, torch.randn(15))
    with pytest.raises(ValueError, match="column stride 2, not 1"):
        ops.linear(torch.randn(2, 80)[:, ::2], packed)
    with pytest.raises(ValueError, match="gated weight has 15 rows; it must be even"):
        ops.pack_quantized(random_weight(Kind(4, 32, True), 15, 8), Activations.INT8, gated=True)
    with pytest.raises(ValueError, match="group_size is 48; allowed: 32, 64, 128, or 0"):
        ops.pack_quantized(replace(weight, group_size=48), Activations.INT8)
    with pytest.raises(ValueError, match="has 5 bits; allowed: 4, 8"):
        ops.pack_quantized(replace(weight, bits=5), Activations.INT8)
    with pytest.raises(ValueError, match=r"scales has shape \[16, 2\], expected \[16, 1\]"):
        ops.pack_quantized(replace(weight, group_size=64), Activations.INT8)
    with pytest.raises(TypeError, match="scales is float32; group_size 32 takes float16"):
        ops.pack_quantized(replace(weight, scales=weight.scales.float()), Activations.INT8)
    with pytest.raises(ValueError, match="LLM_INT8 takes 8 bits, group_size 0, symmetric; got 4 bits, group_size 32"):
        ops.pack_quantized(weight, Activations.LLM_INT8)
    wide = random_weight(Kind(8, 0, True), 1, 66_001)
    with pytest.raises(ValueError, match="a group of 66001 elements; int8 activations take 66000 at most"):
        ops.linear(torch.randn(1, 66_001), ops.pack_quantized(wide, Activations.INT8))
