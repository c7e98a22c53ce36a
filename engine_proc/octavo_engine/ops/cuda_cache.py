"""The paged cache on CUDA (ops.KVLayout): its size and its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from octavo_engine.ops import KVLayout

__all__ = ["cache_shape", "empty_cache", "page_bytes"]

_EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, *_EIGHT_BITS)
_LARGEST_HEAD = 256


def cache_shape(layout: KVLayout) -> tuple[int, ...]:
    """The shape of keys and of values. ValueError for what the layout can't hold."""
    head_dim, page_size, dtype = layout.head_dim, layout.page_size, layout.dtype
    if dtype not in _DTYPES:
        raise ValueError(
            f"a cache of {dtype} is not held on CUDA; take bfloat16, float16, float32, int8 or float8_e4m3fn as "
            "EngineOptions.kv_cache_dtype"
        )
    if head_dim % 2 or not 0 < head_dim <= _LARGEST_HEAD or page_size % 16:
        raise ValueError(
            f"head_dim={head_dim} must be even and at most {_LARGEST_HEAD} on CUDA, and page_size={page_size} a "
            "multiple of 16; change EngineOptions.page_size"
        )
    lead = (layout.num_layers, layout.num_pages, layout.num_kv_heads)
    if dtype in _EIGHT_BITS:
        return (*lead, page_size * (head_dim + torch.float16.itemsize))
    return (*lead, page_size, head_dim)


def page_bytes(layout: KVLayout) -> int:
    """See Ops.page_bytes."""
    layers, _, *page = cache_shape(layout)
    return 2 * torch.Size((layers, *page)).numel() * layout.dtype.itemsize


def empty_cache(layout: KVLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """See Ops.empty_cache."""
    shape = cache_shape(layout)
    kind = torch.uint8 if layout.dtype in _EIGHT_BITS else layout.dtype  # not every torch fills 8-bit floats
    try:
        keys, values = (torch.zeros(shape, dtype=kind, device=device).view(layout.dtype) for _ in range(2))
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the device has no room for a KV cache of {layout.num_pages} pages, {page_bytes(layout)} bytes each "
            f"({error}); lower EngineOptions.kv_cache_memory"
        ) from error
    return keys, values
