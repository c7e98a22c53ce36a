"""The paged cache in plain torch: how tokens' keys and values are written to KVLayout's tensors, and read back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cache_pack", "quantize_heads", "read_pages", "write_slots"]


def cache_pack(dtype: torch.dtype) -> int:
    """p of KVLayout: elements of the reduced dimension that lie side by side, four bytes of them but of float16."""
    return {torch.int8: 4, torch.bfloat16: 2}.get(dtype, 1)


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] -> codes [..., D] int8 and scales [...] float32: absmax / 127, halves to even; zeros have scale 0.

    A row with an element that is not finite has the scale NaN and codes 0.
    """
    x = x.float()
    amax = x.abs().amax(-1)
    inverse = torch.where(amax > 0, 127 / amax, 0)
    finite = x.isfinite().all(-1)
    codes = torch.where(finite.unsqueeze(-1), (x * inverse.unsqueeze(-1)).round(), 0)
    return codes.to(torch.int8), torch.where(finite, amax / 127, float("nan"))


def _scales(keys: Tensor, which: int) -> Tensor:
    """[P, Hkv, B] float32 view of an int8 cache's key (which = -2) or value (-1) scales."""
    return keys.view(torch.float32)[:, :, which, :, 0]


def write_slots(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """k, v [T, Hkv, D] to slots [T] of one layer's cache."""
    p, page_size = keys.shape[-1], keys.shape[3]
    page, offset = slots.long() // page_size, slots.long() % page_size
    if keys.dtype == torch.int8:
        k, key_scales = quantize_heads(k)
        v, value_scales = quantize_heads(v)
        _scales(keys, -2)[page, :, offset] = key_scales
        _scales(keys, -1)[page, :, offset] = value_scales
    lines = values.shape[3] // p
    keys[:, :, :lines][page, :, :, offset, :] = k.reshape(*k.shape[:2], -1, p).to(keys.dtype)
    values[page, :, offset // p, :, offset % p] = v.to(values.dtype)


def read_pages(keys: Tensor, values: Tensor, pages: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of pages [n], one after the other: [Hkv, n * B, D] float32 each."""
    p, head_dim = keys.shape[-1], values.shape[3]
    k = keys[pages, :, : head_dim // p].permute(1, 0, 3, 2, 4).reshape(keys.shape[1], -1, head_dim).float()
    v = values[pages].permute(1, 0, 2, 4, 3).reshape(values.shape[1], -1, head_dim).float()
    if keys.dtype == torch.int8:
        k = k * _scales(keys, -2)[pages].transpose(0, 1).flatten(1).unsqueeze(-1)
        v = v * _scales(keys, -1)[pages].transpose(0, 1).flatten(1).unsqueeze(-1)
    return k, v
