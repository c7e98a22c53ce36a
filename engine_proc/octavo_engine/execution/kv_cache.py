"""The paged KV cache (arXiv 2309.06180): its size, and the views of it that a step works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_engine.ops import KVLayout

if TYPE_CHECKING:
    import torch

    from octavo_engine.models.base import ModelConfig
    from octavo_engine.ops import Ops

__all__ = ["KVCache", "cache_layout", "default_kv_memory", "num_pages_for", "page_bytes"]


def cache_layout(config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype) -> KVLayout:
    """The cache that a model needs."""
    return KVLayout(config.num_layers, num_pages, config.num_kv_heads, config.head_dim, page_size, dtype)


def page_bytes(ops: Ops, config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes: keys and values of `page_size` tokens in all layers.

    ValueError for shapes that the cache of `ops` can't hold.
    """
    return ops.page_bytes(cache_layout(config, 1, page_size, dtype))


def num_pages_for(ops: Ops, memory_bytes: int, config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Whole pages that fit in `memory_bytes`; ValueError if not even one does."""
    size = page_bytes(ops, config, page_size, dtype)
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
    """Keys and values of all layers in the layout of the backend (ops.KVLayout), zero until written.

    Raises MemoryError when there is not so much memory, ValueError for shapes the layout can't hold. `layers[l]` is one
    layer's pair of views.
    """

    def __init__(self, ops: Ops, layout: KVLayout) -> None:
        self.layout = layout
        self.keys, self.values = ops.empty_cache(layout)
        self.nbytes = self.keys.nbytes + self.values.nbytes
        self.layers = list(zip(self.keys.unbind(0), self.values.unbind(0), strict=True))
