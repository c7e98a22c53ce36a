"""The paged KV cache (arXiv 2309.06180): its memory, its size, and the views of it that a step works on."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import torch

from octavo_engine.ops import KVLayout

if TYPE_CHECKING:
    from octavo_engine.models.base import ModelConfig

__all__ = ["KVCache", "default_kv_memory", "num_pages_for", "page_bytes"]


def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes: keys and values of `page_size` tokens in all layers.

    ValueError for shapes that ops.KVLayout can't hold.
    """
    _pack(config.head_dim, page_size, dtype)
    scales = 2 * torch.float32.itemsize if dtype == torch.int8 else 0  # of a token's key and its value, each head
    token = 2 * config.head_dim * dtype.itemsize + scales
    return config.num_layers * config.num_kv_heads * page_size * token


def num_pages_for(memory_bytes: int, config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Whole pages that fit in `memory_bytes`; ValueError if not even one does."""
    size = page_bytes(config, page_size, dtype)
    if memory_bytes < size:
        raise ValueError(
            f"kv_cache_memory={memory_bytes}: one page of {page_size} tokens takes {size} bytes; "
            "raise EngineOptions.kv_cache_memory or lower page_size"
        )
    return memory_bytes // size


def default_kv_memory(*, available: int, page_bytes: int, page_size: int, max_num_seqs: int, max_model_len: int) -> int:
    """Bytes of cache to take where the user names none, a whole number of pages.

    What max_num_seqs sequences of max_model_len tokens could fill, but at most a quarter of the `available` bytes: the
    engine is a guest in its host's machine. Where a quarter would not hold one longest sequence, up to half is taken
    for it. At least one page. Memory is only reserved: a page costs nothing until it is written to.
    """
    longest = -(-max_model_len // page_size)
    quarter, half = available // 4 // page_bytes, available // 2 // page_bytes
    pages = min(max_num_seqs * longest, max(quarter, min(longest, half)))
    return max(1, pages) * page_bytes


class KVCache:
    """Keys and values of all layers in the layout of ops.KVLayout, zero until written.

    Raises MemoryError when the system refuses the address space, ValueError for shapes the layout can't hold.
    keys [layers, P, Hkv, D/p, B, p], of int8 [layers, P, Hkv, D/4 + 2, B, 4], and values [layers, P, Hkv, B/p, D, p];
    `layers[l]` is one layer's pair of views.
    """

    def __init__(self, layout: KVLayout) -> None:
        pack = _pack(layout.head_dim, layout.page_size, layout.dtype)
        lead = (layout.num_layers, layout.num_pages, layout.num_kv_heads)
        self.layout = layout
        lines = layout.head_dim // pack + (2 if layout.dtype == torch.int8 else 0)
        self.keys = _untouched_zeros((*lead, lines, layout.page_size, pack), layout.dtype)
        self.values = _untouched_zeros((*lead, layout.page_size // pack, layout.head_dim, pack), layout.dtype)
        self.layers = list(zip(self.keys.unbind(0), self.values.unbind(0), strict=True))


def _pack(head_dim: int, page_size: int, dtype: torch.dtype) -> int:
    """p of KVLayout: elements that lie side by side."""
    pack = {torch.int8: 4, torch.bfloat16: 2}.get(dtype, 1)
    if head_dim % pack or page_size % 16:
        raise ValueError(
            f"head_dim={head_dim} must be a multiple of {pack} for {dtype}, and page_size={page_size} of 16; "
            "change EngineOptions.kv_cache_dtype or page_size"
        )
    return pack


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
