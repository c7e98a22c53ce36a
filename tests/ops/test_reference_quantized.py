"""The reference of quantised weights itself: its layout byte by byte, its products against small cases by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.ops import Activation, Activations, QuantizedWeight
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.ops.reference_quantized import dequantize, quantize_rows
from tests.ops.quantized import KINDS, Kind, random_weight

OPS = ReferenceOps()
FLOAT, INT8, LLM_INT8 = Activations
SIZES = [(1, 1), (2, 7), (18, 31), (32, 128), (34, 33), (100, 131), (64, 160)]


def weight(
    codes: list[list[int]], scales: list[float], offsets: list[float] | None = None, bits: int = 4, group_size: int = 0
) -> QuantizedWeight:
    """One group a row."""
    dtype = torch.float16 if group_size else torch.float32
    return QuantizedWeight(
        torch.tensor(codes, dtype=torch.uint8),
        torch.tensor(scales, dtype=dtype)[:, None],
        None if offsets is None else torch.tensor(offsets, dtype=dtype)[:, None],
        bits,
        group_size,
    )


def product(w: QuantizedWeight, activations: Activations, x: list[list[float]]) -> list[list[float]]:
    result: list[list[float]] = OPS.linear(
        torch.tensor(x, dtype=torch.float32), OPS.pack_quantized(w, activations)
    ).tolist()
    return result


# ---- layout ----------------------------------------------------------------------------------------------------


def test_four_bits_byte_by_byte() -> None:
    w = weight([[1, 2, 3, 4, 5, 6, 7, 9, 10]] * 17 + [[15] * 9], [0.5] * 17 + [2.0], group_size=32)
    packed = OPS.pack_quantized(w, FLOAT)
    assert packed.data.shape == (1, 2 * 128 + 64)
    data = packed.data[0].tolist()
    # Lane 0, k = 0..7 and, 128 bytes on, k = 8 with seven codes of zero (8).
    assert data[:4] == [0x51, 0x62, 0x73, 0x94]
    assert data[128:132] == [0x8A, 0x88, 0x88, 0x88]
    # Output 17 is lane 1 of the second line, then come lanes without an output.
    assert data[64:68] == [0x51, 0x62, 0x73, 0x94]
    assert data[68:72] == [0xFF] * 4
    assert data[72:128] == [0] * 56
    assert data[192 + 4 : 192 + 8] == [0x8F, 0x88, 0x88, 0x88]
    assert packed.data[0, 256:].view(torch.float16).tolist() == [0.5] * 17 + [2.0] + [0.0] * 14


def test_eight_bits_byte_by_byte() -> None:
    w = weight([[200, 2, 3, 4, 5], [9, 9, 9, 9, 9]], [0.5, 0.25], [1.0, -1.0], bits=8)
    data = OPS.pack_quantized(w, INT8).data
    assert data.shape == (1, 2 * 128 + 2 * 128)
    assert data[0, :12].tolist() == [200, 2, 3, 4, 9, 9, 9, 9, 0, 0, 0, 0]
    # Padding is the middle code here too: what it stands for is never read, since x is zero there.
    assert data[0, 128:136].tolist() == [5, 128, 128, 128, 9, 128, 128, 128]
    assert data[0, 256:].view(torch.float32).tolist() == [0.5, 0.25] + [0.0] * 30 + [1.0, -1.0] + [0.0] * 30


def test_groups_follow_each_other() -> None:
    """Two panels; each is a group of 32, its factors, then a group of 8 and its factors."""
    w = random_weight(Kind(4, 32, False), 40, 40)
    data = OPS.pack_quantized(w, FLOAT).data
    first, second = 4 * 128 + 2 * 64, 128 + 2 * 64
    assert data.shape == (2, first + second)
    factors = data[1, first - 128 : first].view(torch.float16).view(2, 32)
    assert torch.equal(factors[:, :8], torch.stack((w.scales[32:, 0], w.offsets[32:, 0])))  # type: ignore[index]
    assert data[1, first].item() == w.codes[32, 32] | w.codes[32, 36] << 4
    assert torch.equal(data[1, -64:].view(torch.float16)[:8], w.offsets[32:, 1])  # type: ignore[index]


def test_gated_rows_are_sixteen_gate_then_sixteen_up() -> None:
    codes = [[n] for n in range(36)]
    packed = OPS.pack_quantized(weight(codes, [1.0] * 36, bits=8), INT8, gated=True)
    lanes = packed.data[:, : 32 * 4 : 4].tolist()
    assert lanes[0] == [*range(16), *range(18, 34)]
    assert lanes[1] == [16, 17, *[0] * 14, 34, 35, *[0] * 14]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_round_trip(kind: Kind, gated: bool) -> None:
    for n, k in SIZES:
        if gated and n % 2:
            continue
        w = random_weight(kind, n, k)
        back = OPS.unpack_quantized(OPS.pack_quantized(w, FLOAT, gated=gated))
        assert torch.equal(back.codes, w.codes)
        assert torch.equal(back.scales, w.scales)
        assert (back.offsets is None) == kind.symmetric
        assert back.offsets is None or torch.equal(back.offsets, w.offsets)  # type: ignore[arg-type]
        assert (back.bits, back.group_size) == (kind.bits, kind.group_size)


# ---- products by hand ------------------------------------------------------------------------------------------


def test_float_activations_by_hand() -> None:
    assert product(weight([[9, 11, 6, 10]], [0.5]), FLOAT, [[1, 2, 3, -4]]) == [[0.5 * (1 + 6 - 6 - 8)]]
    # 0.25 * code + 1: 1, 1.75, 4.75, 1.25
    assert product(weight([[0, 3, 15, 1]], [0.25], [1.0]), FLOAT, [[1, 2, -1, 4]]) == [[1 + 3.5 - 4.75 + 5]]


def test_int8_activations_by_hand() -> None:
    # absmax 127: the codes are 127, 0, 2, -2 (halves to even), the weight's 1, 3, -2, 2.
    x = [[127.0, 0.5, 1.5, -2.5], [0.0] * 4, [254.0, 1.0, 3.0, -5.0]]
    assert product(weight([[9, 11, 6, 10]], [0.5]), INT8, x) == [[59.5], [0.0], [119.0]]
    assert product(weight([[0, 3, 15, 1]], [0.25], [1.0], bits=8), INT8, x[:1]) == [[0.25 * (0 + 30 - 2) + 127]]


def test_llm_int8_by_hand() -> None:
    # Of the first row 6 and -7 stay; 3.96875 = 127/32 is the largest of the others, whose codes are 127 and -34.
    w = weight([[129, 127, 130, 118]], [0.5], bits=8)
    x = [[6.0, 127 / 32, -33.5 / 32, -7.0], [5.0, 0.0, 0.0, 0.0]]
    first = (-127 - 2 * 34) / 32 * 0.5 + (6 + 70) * 0.5
    y = product(w, LLM_INT8, x)
    assert y[0] == [first]
    assert y[1][0] == pytest.approx(2.5, rel=1e-6)
    # Another threshold, and all columns at once: what is left is a row of zeros.
    packed = OPS.pack_quantized(w, LLM_INT8, threshold=1.0)
    assert packed.threshold == 1.0
    assert OPS.linear(torch.tensor([[3.0, -1.0, 1.5, 2.0]]), packed).item() == 0.5 * (3 + 1 + 3 - 20)


def test_quantized_rows() -> None:
    codes, scales = quantize_rows(torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0], [1e-38, -1e-38, 0.0]]))
    assert codes.tolist() == [[64, -127, 0], [0, 0, 0], [0, 0, 0]]
    assert scales[:2, 0].tolist() == [torch.tensor(2.0).div(127).item(), 0.0]
    # Each 32 elements have a scale of their own, the last ones too.
    codes, scales = quantize_rows(torch.tensor([[127.0] * 32 + [1.0, -0.5]]))
    assert codes.tolist() == [[127] * 33 + [-64]]
    assert scales.tolist() == [[1.0, torch.tensor(1.0).div(127).item()]]


# ---- products against a dequantised matmul ---------------------------------------------------------------------


def plain(w: QuantizedWeight) -> Tensor:
    """The definition once more, element by element."""
    k = w.codes.shape[1]
    group = torch.arange(k) // (w.group_size or k)
    scale = w.scales.double()[:, group]
    offset = 0 if w.offsets is None else w.offsets.double()[:, group]
    zero = 1 << (w.bits - 1) if w.offsets is None else 0
    return scale * (w.codes.double() - zero) + offset


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_against_the_dequantised_weight(kind: Kind, dtype: torch.dtype) -> None:
    for n, k in SIZES:
        w, x = random_weight(kind, n, k), torch.randn(5, k + 2).to(dtype)[:, 1 : k + 1]
        wide = plain(w)
        torch.testing.assert_close(dequantize(w), wide, rtol=1e-15, atol=0)
        bias = torch.randn(n)
        exact = x.double() @ wide.T + bias.double()
        got = OPS.linear(x, OPS.pack_quantized(w, FLOAT), bias, out_dtype=torch.float32)
        torch.testing.assert_close(got.double(), exact, rtol=2**-23, atol=1e-7)
        assert OPS.linear(x, OPS.pack_quantized(w, FLOAT), bias).dtype == dtype
        # An element of x moves by half a step of its row at most.
        got = OPS.linear(x, OPS.pack_quantized(w, INT8), bias, out_dtype=torch.float32)
        bound = (x.float().abs().amax(1) / 127 * 0.501)[:, None] * wide.abs().sum(1) + 1e-6
        assert ((got - exact).abs() <= bound).all()


def test_gated_activated_added() -> None:
    w, x, bias = random_weight(Kind(4, 32, False), 100, 50), torch.randn(3, 50), torch.randn(100)
    y = x.double() @ plain(w).T + bias
    gated = OPS.linear(x, OPS.pack_quantized(w, FLOAT, gated=True), bias, act=Activation.SILU)
    torch.testing.assert_close(gated, (F.silu(y[:, :50]) * y[:, 50:]).float())
    packed = OPS.pack_quantized(w, FLOAT)
    torch.testing.assert_close(OPS.linear(x, packed, bias, act=Activation.RELU), y.relu().float())
    residual = torch.ones(3, 100)
    OPS.linear_add_(residual, x, packed, bias)
    torch.testing.assert_close(residual, (1 + y).float())


def test_embedding_reads_rows() -> None:
    w = random_weight(Kind(8, 64, True), 40, 70)
    ids = torch.tensor([39, 0, 39], dtype=torch.int32)
    got = OPS.embedding(ids, OPS.pack_quantized(w, INT8), 2.0)
    assert torch.equal(got, plain(w)[ids.long()].float() * 2.0)
    with pytest.raises(ValueError, match="gated"):
        OPS.embedding(ids, OPS.pack_quantized(w, INT8, gated=True))


# ---- refusals --------------------------------------------------------------------------------------------------


def test_refusals_print_the_numbers() -> None:
    w = random_weight(Kind(4, 32, False), 5, 40)
    with pytest.raises(ValueError, match="4 or 8 bits, not 5"):
        OPS.pack_quantized(replace(w, bits=5), FLOAT)
    with pytest.raises(ValueError, match="group_size is 48; allowed: 32, 64, 128, or 0"):
        OPS.pack_quantized(replace(w, group_size=48), FLOAT)
    with pytest.raises(ValueError, match=r"scales have shape \[5, 2\], expected \[5, 1\]"):
        OPS.pack_quantized(replace(w, group_size=64), FLOAT)
    with pytest.raises(ValueError, match=r"offsets have shape \[5\], expected \[5, 2\]"):
        OPS.pack_quantized(replace(w, offsets=torch.zeros(5, dtype=torch.float16)), FLOAT)
    with pytest.raises(TypeError, match=r"scales are torch\.float32; with group_size 32 they are torch\.float16"):
        OPS.pack_quantized(replace(w, scales=w.scales.float()), FLOAT)
    with pytest.raises(TypeError, match=r"codes are torch\.int8"):
        OPS.pack_quantized(replace(w, codes=w.codes.view(torch.int8)), FLOAT)
    with pytest.raises(ValueError, match="code 16 does not fit 4 bits"):
        OPS.pack_quantized(replace(w, codes=w.codes.clone().fill_(16)), FLOAT)
    with pytest.raises(ValueError, match="rows are even; got 5"):
        OPS.pack_quantized(w, FLOAT, gated=True)
    with pytest.raises(
        ValueError, match="LLM_INT8 takes 8 bits, group_size 0, symmetric; got 4 bits, group_size 32, asym"
    ):
        OPS.pack_quantized(w, LLM_INT8)
    with pytest.raises(ValueError, match=r"x has shape \[2, 41\]; the weight has 40 columns"):
        OPS.linear(torch.zeros(2, 41), OPS.pack_quantized(w, FLOAT))
    with pytest.raises(TypeError, match=r"x is torch\.float16"):
        OPS.linear(torch.zeros(2, 40, dtype=torch.float16), OPS.pack_quantized(w, FLOAT))
