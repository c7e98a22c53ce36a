"""Paged caches as plain floats, whatever the backend's layout (ops.KVLayout): how tests fill them and look into them.

Written from the layout's description and in plain torch, so that it says what a backend's ops must agree with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo_engine.ops import KVLayout, Ops
from octavo_engine.ops.reference_cache import quantize_heads, read_pages, write_slots

__all__ = ["fill", "poisoned", "read", "round_to_fp8", "write"]

_FP8_MAX = 448.0


def poisoned(ops: Ops, layout: KVLayout) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers, every byte of every slot 255: NaN in all floats, scales included, a code of -1."""
    keys, values = ops.empty_cache(layout)
    for cache in (keys, values):
        cache.view(torch.uint8).fill_(255)
    return keys, values


def write(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """k, v [T, Hkv, D] to slots [T] of one layer's cache."""
    if keys.ndim == 5:
        return write_slots(keys, values, k, v, slots)
    for cache, x in ((keys, k), (values, v)):
        where, x = slots.to(cache.device).long(), x.to(cache.device)
        if cache.ndim == 4:  # [P, Hkv, B, D]
            page, offset = where // cache.shape[2], where % cache.shape[2]
            cache[page, :, offset] = x.to(cache.dtype)
            continue
        codes, scales = _parts(cache, x.shape[-1])
        page, offset = where // scales.shape[2], where % scales.shape[2]
        if cache.dtype == torch.int8:
            rounded, scale = quantize_heads(x)
        else:
            rounded, scale = _to_fp8(x)
        codes.view(torch.uint8)[page, :, offset] = rounded.view(torch.uint8)  # not every device indexes 8-bit floats
        scales[page, :, offset] = scale.half()
    return None


def _to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] -> codes and scales [...] float16: absmax / 448, the largest that float8_e4m3fn holds."""
    scale = (x.float().abs().amax(-1) / _FP8_MAX).half()
    return (x.float() / scale.float().unsqueeze(-1)).to(torch.float8_e4m3fn), scale


def round_to_fp8(x: Tensor) -> Tensor:
    """What a cache of float8_e4m3fn holds of x [..., D]."""
    codes, scale = _to_fp8(x)
    return codes.float() * scale.float().unsqueeze(-1)


def read(keys: Tensor, values: Tensor, pages: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values of pages [n], one after the other: [Hkv, n * B, D] float32 each, on the CPU."""
    if keys.ndim == 5:
        return read_pages(keys, values, pages)
    return _read(keys, pages, head_dim), _read(values, pages, head_dim)


def _read(cache: Tensor, pages: Tensor, head_dim: int) -> Tensor:
    cache = cache.cpu()
    if cache.ndim == 4:
        rows = cache[pages].float()
    else:
        codes, scales = _parts(cache, head_dim)
        rows = codes[pages].float() * scales[pages].float().unsqueeze(-1)
    return rows.transpose(0, 1).flatten(1, 2)


def _parts(cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Views of an 8-bit CUDA cache [P, Hkv, B * D + 2 * B]: codes [P, Hkv, B, D] and scales [P, Hkv, B] float16."""
    size = cache.shape[2] // (head_dim + 2)
    codes = cache[..., : size * head_dim].unflatten(-1, (size, head_dim))
    return codes, cache[..., size * head_dim :].view(torch.float16)


def fill(keys: Tensor, values: Tensor, slots: Tensor, head_dim: int, value: Any) -> None:
    """Every element of the keys and values of slots := value; of an 8-bit cache every byte, its scales included."""
    if keys.ndim == 5:
        p, size = keys.shape[-1], keys.shape[3]
        page, offset = slots.long() // size, slots.long() % size
        keys[page, :, :, offset] = value
        values[page, :, offset // p, :, offset % p] = value
        return
    for cache in (keys, values):
        where = slots.to(cache.device).long()
        if cache.ndim == 4:
            cache[where // cache.shape[2], :, where % cache.shape[2]] = value
            continue
        codes, scales = _parts(cache.view(torch.int8), head_dim)
        size = scales.shape[2]
        codes[where // size, :, where % size] = value
        scales.view(torch.int8).unflatten(-1, (size, 2))[where // size, :, where % size] = value
