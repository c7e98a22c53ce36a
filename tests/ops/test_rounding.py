"""Ops.quantize: the native kernel gives the reference's bits, and a code is the nearest one."""

from __future__ import annotations

import pytest
import torch

from octavo_engine.ops import Ops, QuantizedWeight
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.ops.reference_quantized import dequantize

FORMATS = [(4, size, symmetric) for size in (32, 64, 128) for symmetric in (True, False)] + [(8, 0, True)]
SHAPES = [(1, 1), (3, 7), (5, 31), (17, 33), (8, 128), (9, 250)]


def quantize(ops: Ops, weights: list[torch.Tensor], form: tuple[int, int, bool]) -> QuantizedWeight:
    bits, group_size, symmetric = form
    return ops.quantize(weights, bits=bits, group_size=group_size, symmetric=symmetric)


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, one of them zero, one of them with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 2, rows)[:, None]
    w[rows // 2] = 0
    w[-1, columns // 3] *= 40
    return w


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_gives_the_bits_of_the_reference(
    ops: Ops, form: tuple[int, int, bool], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    parts = [weights(*shape).to(dtype), weights(*shape, seed=1).to(dtype)]
    ours, theirs = quantize(ops, parts, form), quantize(ReferenceOps(), parts, form)
    assert torch.equal(ours.scales, theirs.scales)
    assert torch.equal(ours.codes, theirs.codes)
    if theirs.offsets is None:
        assert ours.offsets is None
    else:
        assert ours.offsets is not None
        assert torch.equal(ours.offsets, theirs.offsets)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_code_is_the_nearest_one_to_its_weight(form: tuple[int, int, bool]) -> None:
    w = torch.randn(40, 200, generator=torch.Generator().manual_seed(2)) * 0.02
    made = quantize(ReferenceOps(), [w], form)
    lowest, highest = (0, 15) if made.bits == 4 else (1, 255)
    distance = (dequantize(made) - w).abs()
    for step in (-1, 1):
        moved = (made.codes.int() + step).clamp(lowest, highest).to(torch.uint8)
        other = QuantizedWeight(moved, made.scales, made.offsets, made.bits, made.group_size)
        assert ((dequantize(other) - w).abs() >= distance - 1e-8).all()


@pytest.mark.parametrize(
    ("form", "bound"),
    # Root mean squared error over that of the weights. Gaussian weights; measured values are 3 % below the bounds.
    [
        ((4, 32, True), 0.0838),
        ((4, 64, True), 0.0928),
        ((4, 128, True), 0.0996),
        ((4, 32, False), 0.0741),
        ((4, 64, False), 0.0850),
        ((4, 128, False), 0.0944),
        ((8, 0, True), 0.0081),
    ],
    ids=str,
)
def test_error_of_gaussian_weights(form: tuple[int, int, bool], bound: float) -> None:
    w = torch.randn(256, 1024, generator=torch.Generator().manual_seed(3))
    error = float((dequantize(quantize(ReferenceOps(), [w], form)) - w).square().mean().sqrt())
    assert 0.9 * bound < error < bound


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_searched_scale_is_no_worse_than_the_plain_one(symmetric: bool) -> None:
    w = weights(64, 256)[8:]  # above float16's subnormal scales
    made = quantize(ReferenceOps(), [w], (4, 32, symmetric))
    error = (dequantize(made) - w).square().view(len(w), -1, 32).sum(-1)
    blocks = w.view(len(w), -1, 32)
    if symmetric:
        scale, offset, low, high = (blocks.abs().amax(-1, keepdim=True) / 7).half().float(), 0.0, -8, 7
    else:
        base = blocks.amin(-1, keepdim=True)
        scale = ((blocks.amax(-1, keepdim=True) - base) / 15).half().float()
        offset, low, high = base.half().float(), 0, 15
    plain = ((blocks - offset) / scale.clamp_min(1e-30)).round().clamp(low, high) * scale + offset
    assert (error <= (plain - blocks).square().sum(-1) * 1.0001).all()


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_told_by_the_scale(ops: Ops, form: tuple[int, int, bool], bad: float) -> None:
    w = weights(6, 70)
    w[4, 65] = bad
    made = quantize(ops, [w], form)
    group = 65 // form[1] if form[1] else 0
    finite = made.scales.isfinite()
    assert not finite[4, group]
    assert int((~finite).sum()) == 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_beyond_float16_the_scale_is_infinite(ops: Ops, symmetric: bool) -> None:
    w = weights(4, 64)
    w[2, 40] = 3e7
    made = quantize(ops, [w], (4, 32, symmetric))
    good = made.scales.isfinite()
    assert not good[2, 1]
    assert int((~good).sum()) == 1


def test_unknown_formats_are_refused(ops: Ops) -> None:
    for form in ((4, 0, True), (8, 0, False), (8, 32, True)):
        with pytest.raises(ValueError, match="rounding to"):
            quantize(ops, [weights(4, 64)], form)
