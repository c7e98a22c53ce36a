"""Weights of 4 and 8 bits in plain torch: their packed layout and what a product with them means.

`ReferenceOps` dispatches here; `ops.QuantizedWeight`, `ops.QuantizedLinear` and `ops.Activations` are the definitions.
Integers are exact and everything else is float64, except for the two roundings that belong to the definition: a row's
scale and its codes, which are computed in float32 as the kernels do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.ops import Activations, QuantizedLinear, QuantizedWeight

__all__ = ["dequantize", "pack_quantized", "product", "quantize_rows", "unpack_quantized"]

_PANEL = 32


def _step(bits: int) -> int:
    """k that two lines of a panel hold."""
    return 8 if bits == 4 else 4


def _widths(in_features: int, group_size: int) -> list[int]:
    """k of every group."""
    size = group_size or in_features
    return [min(size, in_features - start) for start in range(0, in_features, size)]


def _panel_rows(out_features: int, gated: bool) -> Tensor:
    """[panels, 32]: the row of the plain matrix in each lane, `out_features` for padding."""
    if not gated:
        rows = torch.arange(out_features)
        return F.pad(rows, (0, -out_features % _PANEL), value=out_features).view(-1, _PANEL)
    halves = torch.arange(out_features).view(2, -1)
    padded = F.pad(halves, (0, -halves.shape[1] % 16), value=out_features)
    return padded.view(2, -1, 16).transpose(0, 1).reshape(-1, _PANEL)


def _check(weight: QuantizedWeight, activations: Activations, gated: bool) -> None:
    if weight.bits not in (4, 8):
        raise ValueError(f"a quantised weight has 4 or 8 bits, not {weight.bits}")
    if weight.group_size not in (0, 32, 64, 128):
        raise ValueError(f"group_size is {weight.group_size}; allowed: 32, 64, 128, or 0 for one group a row")
    if weight.codes.dtype != torch.uint8:
        raise TypeError(f"codes are {weight.codes.dtype}, not uint8")
    n, k = weight.codes.shape
    if gated and n % 2:
        raise ValueError(f"a gated weight stacks gate and up, so its rows are even; got {n}")
    if n and k and int(weight.codes.max()) >= 1 << weight.bits:
        raise ValueError(f"code {int(weight.codes.max())} does not fit {weight.bits} bits")
    expected = (n, len(_widths(k, weight.group_size)))
    dtype = torch.float16 if weight.group_size else torch.float32
    for name, tensor in (("scales", weight.scales), ("offsets", weight.offsets)):
        if tensor is None:
            continue
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} have shape {list(tensor.shape)}, expected {list(expected)}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} are {tensor.dtype}; with group_size {weight.group_size} they are {dtype}")
    if activations == Activations.LLM_INT8 and (weight.bits, weight.group_size, weight.offsets) != (8, 0, None):
        raise ValueError(
            f"LLM_INT8 takes 8 bits, group_size 0, symmetric; got {weight.bits} bits, group_size "
            f"{weight.group_size}, {'symmetric' if weight.offsets is None else 'asymmetric'}"
        )


def pack_quantized(
    weight: QuantizedWeight, activations: Activations, *, gated: bool = False, threshold: float = 6.0
) -> QuantizedLinear:
    _check(weight, activations, gated)
    n, k = weight.codes.shape
    symmetric, step = weight.offsets is None, _step(weight.bits)
    rows = _panel_rows(n, gated)
    # Padding: k with the code in the middle, then one more row of zero bytes for the lanes beyond N.
    codes = F.pad(weight.codes, (0, -k % step), value=1 << (weight.bits - 1))
    lanes = F.pad(codes, (0, 0, 0, 1))[rows]  # [panels, 32, K]
    factors = [F.pad(t, (0, 0, 0, 1))[rows] for t in (weight.scales, weight.offsets) if t is not None]
    pieces: list[Tensor] = []
    start = 0
    for g, width in enumerate(_widths(k, weight.group_size)):
        block = lanes[..., start : start + width + -width % step].reshape(len(rows), 2, 16, -1, step)
        if weight.bits == 4:
            block = block[..., :4] | block[..., 4:] << 4
        pieces.append(block.permute(0, 3, 1, 2, 4).flatten(1))
        pieces += [t[..., g].contiguous().view(torch.uint8) for t in factors]
        start += width
    data = torch.cat(pieces, dim=1) if pieces else torch.empty(len(rows), 0, dtype=torch.uint8)
    return QuantizedLinear(
        data, n, k, weight.bits, weight.group_size, symmetric, activations, gated=gated, threshold=threshold
    )


def unpack_quantized(packed: QuantizedLinear) -> QuantizedWeight:
    rows = _panel_rows(packed.out_features, packed.gated)
    real = rows < packed.out_features
    step, dtype = _step(packed.bits), torch.float16 if packed.group_size else torch.float32
    widths = _widths(packed.in_features, packed.group_size)
    codes = torch.empty(packed.out_features, packed.in_features, dtype=torch.uint8)
    scales, offsets = (torch.empty(packed.out_features, len(widths), dtype=dtype) for _ in range(2))
    at, start = 0, 0

    def take(size: int) -> Tensor:
        nonlocal at
        at += size
        return packed.data[:, at - size : at].contiguous()

    for g, width in enumerate(widths):
        block = take(-(-width // step) * 2 * 64).view(len(rows), -1, 2, 16, 4)
        if packed.bits == 4:
            block = torch.cat((block & 15, block >> 4), dim=-1)
        block = block.permute(0, 2, 3, 1, 4).reshape(len(rows), _PANEL, -1)[..., :width]
        codes[rows[real], start : start + width] = block[real]
        scales[rows[real], g] = take(_PANEL * dtype.itemsize).view(dtype)[real]
        if not packed.symmetric:
            offsets[rows[real], g] = take(_PANEL * dtype.itemsize).view(dtype)[real]
        start += width
    return QuantizedWeight(codes, scales, None if packed.symmetric else offsets, packed.bits, packed.group_size)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """w [N, K] float64, as `QuantizedWeight` writes it; exact for float16 scales."""
    size = weight.group_size or weight.codes.shape[1]

    def spread(factors: Tensor) -> Tensor:
        return factors.double().repeat_interleave(size, dim=1)[:, : weight.codes.shape[1]]

    if weight.offsets is None:
        return spread(weight.scales) * (weight.codes.double() - (1 << (weight.bits - 1)))
    return spread(weight.scales) * weight.codes.double() + spread(weight.offsets)


ACTIVATION_BLOCK = 32
"""Elements of a row of x that share a scale in Activations.INT8."""


def quantize_rows(x: Tensor, block: int = ACTIVATION_BLOCK) -> tuple[Tensor, Tensor]:
    """x [T, K] -> whole numbers -127..127 [T, K] float64 and scales [T, ceil(K / block)] float32; see Activations.

    A block whose absmax is under 1e-36, where 127 / absmax leaves float32, counts as zeros.
    """
    rows, k = x.shape
    blocks = F.pad(x.float(), (0, -k % block)).view(rows, -1, block)
    absmax = blocks.abs().amax(dim=2, keepdim=True)
    # Not 127 / absmax: torch would round the reciprocal first.
    inverse = torch.full_like(absmax, 127) / absmax
    inverse = torch.where(absmax < 1e-36, 0, inverse)
    return (blocks * inverse).round().double().view(rows, -1)[:, :k], (absmax / 127).squeeze(2)


def rounded_rows(x: Tensor, block: int = ACTIVATION_BLOCK) -> Tensor:
    """x [T, K] -> what its int8 form stands for, [T, K] float64."""
    codes, scales = quantize_rows(x, block)
    return codes * scales.double().repeat_interleave(block, dim=1)[:, : x.shape[1]]


def product(x: Tensor, packed: QuantizedLinear) -> Tensor:
    """x [T, K] bfloat16 or float32 -> x . w [T, N] float64."""
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"x is {x.dtype}; a quantised weight takes bfloat16 or float32")
    if x.shape[1] != packed.in_features:
        raise ValueError(f"x has shape {list(x.shape)}; the weight has {packed.in_features} columns")
    w = dequantize(unpack_quantized(packed))
    match packed.activations:
        case Activations.FLOAT:
            return x.double() @ w.T
        case Activations.INT8:
            return rounded_rows(x) @ w.T
        case Activations.LLM_INT8:
            outlier = x.float().abs() >= packed.threshold
            codes, scale = quantize_rows(x.masked_fill(outlier, 0), max(1, packed.in_features))
            return (codes @ w.T) * scale + x.double().masked_fill(~outlier, 0) @ w.T
    raise ValueError(f"unknown activations {packed.activations!r}")
