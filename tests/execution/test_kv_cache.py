from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo_engine.execution.kv_cache import KVCache, default_kv_memory, num_pages_for, page_bytes
from octavo_engine.models.base import ModelConfig
from octavo_engine.ops import KVLayout, load_ops

OPS = load_ops("reference")  # the CPU's layout
SMOLLM2 = ModelConfig(
    architecture="LlamaForCausalLM",
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    hidden_size=576,
    vocab_size=49152,
    max_position=8192,
    dtype=torch.bfloat16,
)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    ("dtype", "pack"), [(torch.int8, 4), (torch.bfloat16, 2), (torch.float16, 1), (torch.float32, 1)]
)
def test_layout(dtype: torch.dtype, pack: int) -> None:
    cache = KVCache(OPS, KVLayout(3, 5, 2, 24, 32, dtype))
    scale_lines = 2 if dtype == torch.int8 else 0
    assert cache.keys.shape == (3, 5, 2, 24 // pack + scale_lines, 32, pack)
    assert cache.values.shape == (3, 5, 2, 32 // pack, 24, pack)
    for tensor in (cache.keys, cache.values):
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert not tensor.any()


def test_layers_are_views_of_the_whole() -> None:
    cache = KVCache(OPS, KVLayout(3, 5, 2, 24, 16, torch.float32))
    keys, values = cache.layers[1]
    keys[4, 1, 2, 3, 0] = 7
    values[0, 0, 15, 23, 0] = 8
    assert cache.keys[1, 4, 1, 2, 3, 0] == 7
    assert cache.values[1, 0, 0, 15, 23, 0] == 8
    assert int((cache.keys != 0).sum() + (cache.values != 0).sum()) == 2


def test_pages_cost_no_memory_until_written() -> None:
    before = resident_bytes()
    layout = KVLayout(30, 1000, 3, 64, 16, torch.bfloat16)
    cache = KVCache(OPS, layout)
    assert resident_bytes() - before < 4 << 20  # of 369 MB
    for keys, values in cache.layers:
        keys[0] = 1
        values[0] = 1
    assert resident_bytes() - before < 16 << 20


@pytest.mark.parametrize(("head_dim", "page_size"), [(63, 16), (64, 24)])
def test_refuses_shapes_the_layout_cannot_hold(head_dim: int, page_size: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim={head_dim}.*page_size={page_size}"):
        KVCache(OPS, KVLayout(1, 1, 1, head_dim, page_size, torch.bfloat16))


def test_int8_takes_heads_of_whole_words() -> None:
    with pytest.raises(ValueError, match=r"head_dim=66 must be a multiple of 4 .*int8.*kv_cache_dtype"):
        KVCache(OPS, KVLayout(1, 1, 1, 66, 16, torch.int8))


def test_more_than_the_system_gives_names_the_knob() -> None:
    with pytest.raises(MemoryError, match=r"lower EngineOptions\.kv_cache_memory"):
        KVCache(OPS, KVLayout(30, 1 << 40, 3, 64, 16, torch.bfloat16))


def test_page_bytes_is_what_a_page_takes() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.int8):
        cache = KVCache(OPS, KVLayout(30, 2, 3, 64, 16, dtype))
        assert 2 * page_bytes(OPS, SMOLLM2, 16, dtype) == cache.keys.nbytes + cache.values.nbytes


def test_num_pages_for() -> None:
    size = page_bytes(OPS, SMOLLM2, 16, torch.bfloat16)
    assert num_pages_for(OPS, 10 * size + size - 1, SMOLLM2, 16, torch.bfloat16) == 10
    with pytest.raises(ValueError, match=f"kv_cache_memory={size - 1}.*{size} bytes"):
        num_pages_for(OPS, size - 1, SMOLLM2, 16, torch.bfloat16)


@pytest.mark.parametrize(
    ("available", "seqs", "length", "pages"),
    [
        (1_000_000, 2, 40, 6),  # all that could be used: two sequences of three pages
        (1_000_000, 256, 1600, 250),  # a quarter of the memory
        (1_000_000, 256, 6400, 400),  # a quarter is 250 pages, a longest sequence takes 400
        (1_000_000, 256, 16000, 500),  # half of the memory does not hold one: half it is
        (10, 256, 16000, 1),  # never less than a page
    ],
)
def test_default_memory(available: int, seqs: int, length: int, pages: int) -> None:
    memory = default_kv_memory(
        available=available, page_bytes=1000, page_size=16, max_num_seqs=seqs, max_model_len=length
    )
    assert memory == pages * 1000
