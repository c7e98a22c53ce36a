"""Paged batches for tests: sequences of known content, cut anywhere, in a cache whose unwritten slots are NaN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo_engine.ops import KVLayout, Ops
from tests.ops import caches

__all__ = ["Chunk", "Shape", "attend", "empty_cache", "make_batch", "sequence"]


@dataclass(frozen=True)
class Shape:
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    activation: torch.dtype = torch.bfloat16
    cache: torch.dtype = torch.bfloat16

    @property
    def columns(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def layout(self, num_pages: int, num_layers: int = 1) -> KVLayout:
        return KVLayout(num_layers, num_pages, self.num_kv_heads, self.head_dim, self.page_size, self.cache)


@dataclass(frozen=True)
class Chunk:
    """Tokens start:end of a sequence whose q, k and v are the rows of qkv [length, columns]."""

    qkv: Tensor
    start: int
    end: int


def sequence(shape: Shape, length: int, seed: int) -> Tensor:
    """The qkv rows of a sequence; a longer one of the same seed starts with the same rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, shape.columns, generator=generator).to(shape.activation)


def empty_cache(ops: Ops, shape: Shape, num_pages: int) -> tuple[Tensor, Tensor]:
    """One layer's keys and values in the backend's layout, every slot NaN; of int8 every scale, and every code -1."""
    keys, values = caches.poisoned(ops, shape.layout(num_pages))
    return keys[0], values[0]


def make_batch(ops: Ops, shape: Shape, chunks: list[Chunk], seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `paged_attention`: pages in random order, a page table padded with page 0.

    The reference, which has no float8 cache, gets one of float32 that holds the rounded keys and values.
    """
    counts = [-(-chunk.end // shape.page_size) for chunk in chunks]
    pages = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(seed)).int()
    table = torch.zeros(len(chunks), max(counts), dtype=torch.int32)
    rounded = shape.cache == torch.float8_e4m3fn and ops.name == "reference"
    shape = replace(shape, cache=torch.float32) if rounded else shape
    keys, values = empty_cache(ops, shape, sum(counts) + 1)
    used = 0
    for s, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        table[s, :count] = pages[used : used + count]
        used += count
        tokens = torch.arange(chunk.end)
        slots = table[s, tokens // shape.page_size] * shape.page_size + tokens.int() % shape.page_size
        heads = chunk.qkv[: chunk.end].unflatten(1, (-1, shape.head_dim))
        k, v = heads[:, shape.num_heads :].chunk(2, dim=1)
        k, v = (caches.round_to_fp8(k), caches.round_to_fp8(v)) if rounded else (k, v)
        caches.write(keys, values, k, v, slots)
    lengths = torch.tensor([chunk.end - chunk.start for chunk in chunks])
    return {
        "qkv": torch.cat([chunk.qkv[chunk.start : chunk.end] for chunk in chunks]),
        "keys": keys,
        "values": values,
        "page_table": table,
        "query_start": torch.cat((torch.zeros(1), lengths.cumsum(0))).int(),
        "seq_lens": torch.tensor([chunk.end for chunk in chunks], dtype=torch.int32),
    }


def attend(ops: Ops, shape: Shape, chunks: list[Chunk], seed: int = 0, **options: Any) -> list[Tensor]:
    """Attention of the chunks as one batch -> for each chunk [end - start, Hq * D]."""
    options = {"scale": shape.head_dim**-0.5, **options}
    out = ops.paged_attention(**make_batch(ops, shape, chunks, seed), num_heads=shape.num_heads, **options)
    return list(out.split([chunk.end - chunk.start for chunk in chunks]))
