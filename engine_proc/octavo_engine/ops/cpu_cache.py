"""The paged cache on the CPU (ops.KVLayout): its size and its memory."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from octavo_engine.ops import KVLayout

__all__ = ["cache_shapes", "empty_cache", "page_bytes"]


def cache_shapes(layout: KVLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of keys and values. ValueError for what the layout can't hold."""
    head_dim, page_size, dtype = layout.head_dim, layout.page_size, layout.dtype
    pack = {torch.int8: 4, torch.bfloat16: 2, torch.float16: 1, torch.float32: 1}.get(dtype)
    if pack is None:
        raise ValueError(
            f"a cache of {dtype} is not held on the CPU; take bfloat16, float32, float16 or int8 as "
            "EngineOptions.kv_cache_dtype"
        )
    if head_dim % pack or page_size % 16:
        raise ValueError(
            f"head_dim={head_dim} must be a multiple of {pack} for {dtype}, and page_size={page_size} of 16; "
            "change EngineOptions.kv_cache_dtype or page_size"
        )
    lead = (layout.num_layers, layout.num_pages, layout.num_kv_heads)
    lines = head_dim // pack + (2 if dtype == torch.int8 else 0)
    return (*lead, lines, page_size, pack), (*lead, page_size // pack, head_dim, pack)


def page_bytes(layout: KVLayout) -> int:
    """See Ops.page_bytes."""
    elements = sum(torch.Size((shape[0], *shape[2:])).numel() for shape in cache_shapes(layout))
    return elements * layout.dtype.itemsize


def empty_cache(layout: KVLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """See Ops.empty_cache. Memory is only reserved: a page costs nothing until it is written to."""
    keys, values = cache_shapes(layout)
    return _untouched_zeros(keys, layout.dtype), _untouched_zeros(values, layout.dtype)


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until they are written to, at a page's boundary.

    torch.zeros writes every byte (1.9 s and 1 GiB of RSS for a GiB); an anonymous mapping is zero by promise of the
    system.
    """
    numel = torch.Size(shape).numel()
    size = numel * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(
            f"the system refuses {size} bytes for half of the KV cache ({error}); lower EngineOptions.kv_cache_memory"
        ) from error
    return torch.frombuffer(memory, dtype=dtype, count=numel).view(shape)
