"""Law 6 of attention, to the bit: a row depends on its own sequence, not on batch, chunking, threads or stale slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_engine.ops import Ops, load_ops
from tests.ops import caches
from tests.ops.batches import Chunk, Shape, attend, make_batch, sequence

LENGTH = 200  # four blocks of keys, the last one short

SHAPES = {
    "bf16": Shape(),
    "f32": Shape(activation=torch.float32, cache=torch.float32),
    "f16": Shape(activation=torch.float32, cache=torch.float16),
    "int8": Shape(cache=torch.int8),
    "int8-group-of-8": Shape(8, 1, 80, activation=torch.float32, cache=torch.int8),
    "one-head": Shape(2, 2, 80),
    "group-of-8": Shape(8, 1, 128),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sharp": {"scale": 1.0},  # moves a row's reference in later blocks
    "window": {"sliding_window": 45},
    "capped": {"softcap": 4.0},
    "alibi": {"alibi_slopes": 0.25},
    "rounded alibi": {"alibi_slopes": 0.3, "rounded": True},
}


def arguments(shape: Shape, options: dict[str, Any]) -> dict[str, Any]:
    if "alibi_slopes" not in options:
        return options
    dtype = torch.bfloat16 if options.get("rounded") else torch.float32
    return {"alibi_slopes": torch.full((shape.num_heads,), options["alibi_slopes"], dtype=dtype)}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_and_every_chunking_give_the_bits_of_one_prefill(ops: Ops, shape: str, options: str) -> None:
    s, extra = SHAPES[shape], arguments(SHAPES[shape], OPTIONS[options])
    qkv = sequence(s, LENGTH, seed=5)
    whole = attend(ops, s, [Chunk(qkv, 0, LENGTH)], **extra)[0]
    for size in (1, 7, 64):
        cuts = [(start, min(start + size, LENGTH)) for start in range(0, LENGTH, size)]
        # Each chunk is a step of its own: later tokens are not in the cache yet, their slots are NaN.
        rows = [attend(ops, s, [Chunk(qkv, *cut)], seed=size, **extra)[0] for cut in cuts]
        assert torch.equal(torch.cat(rows), whole), f"chunks of {size}"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_of_64_changes_nothing(ops: Ops, shape: str) -> None:
    s = SHAPES[shape]
    lengths = [1 + 37 * i % 131 for i in range(64)]
    queries = [1 if i % 3 else min(n, 1 + i) for i, n in enumerate(lengths)]
    chunks = [Chunk(sequence(s, n, seed), n - q, n) for seed, (n, q) in enumerate(zip(lengths, queries, strict=True))]
    together = attend(ops, s, chunks)
    for chunk, rows in zip(chunks, together, strict=True):
        assert torch.equal(attend(ops, s, [chunk])[0], rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_threads_changes_nothing(shape: str) -> None:
    s = SHAPES[shape]
    chunks = [Chunk(sequence(s, n, n), start, n) for n, start in ((100, 0), (33, 32), (64, 10), (1, 0))]
    results = [torch.cat(attend(load_ops("cpu", num_threads=n), s, chunks)) for n in (1, 2, 3)]
    load_ops("cpu")
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -3e38])
def test_stale_slots_never_reach_the_result(ops: Ops, poison: float) -> None:
    """Slots past the end, pages of others and page-table entries past the end hold anything."""
    s = Shape()
    chunks = [Chunk(sequence(s, n, n), start, n) for n, start in ((17, 0), (33, 32), (48, 47), (1, 0))]
    batch = make_batch(ops, s, chunks)
    clean = dict(batch, keys=batch["keys"].nan_to_num(0.0), values=batch["values"].nan_to_num(0.0))
    stale = dict(batch, keys=batch["keys"].nan_to_num(poison), values=batch["values"].nan_to_num(poison))
    stale["page_table"] = batch["page_table"].clone()
    for row, chunk in enumerate(chunks):
        stale["page_table"][row, -(-chunk.end // s.page_size) :] = -7
    wanted = ops.paged_attention(**clean, num_heads=s.num_heads, scale=0.1)
    assert wanted.isfinite().all()
    assert torch.equal(ops.paged_attention(**stale, num_heads=s.num_heads, scale=0.1), wanted)


@pytest.mark.parametrize("fill", [-1, 0, 127, -128])
def test_stale_slots_of_an_int8_cache_never_reach_the_result(ops: Ops, fill: int) -> None:
    """Every byte -1 is a scale of NaN, -128 one of -0, 127 one of 3.4e38."""
    s = Shape(cache=torch.int8)
    chunks = [Chunk(sequence(s, n, n), start, n) for n, start in ((17, 0), (33, 32), (48, 47), (1, 0), (130, 70))]
    wanted = make_batch(ops, s, chunks)
    stale = dict(wanted, keys=wanted["keys"].clone(), values=wanted["values"].clone())
    for row, chunk in enumerate(chunks):
        for token in range(chunk.end, -(-chunk.end // s.page_size) * s.page_size):
            slot = wanted["page_table"][row, token // s.page_size] * s.page_size + token % s.page_size
            caches.fill(stale["keys"], stale["values"], slot.unsqueeze(0), s.head_dim, fill)
    results = [ops.paged_attention(**b, num_heads=s.num_heads, scale=0.1) for b in (wanted, stale)]
    assert results[0].isfinite().all()
    assert torch.equal(*results)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_key_or_value_poisons_its_own_sequence_only(ops: Ops, broken: float) -> None:
    s = Shape(cache=torch.int8)
    good, bad = sequence(s, 40, 1), sequence(s, 40, 2)
    bad[20, s.num_heads * s.head_dim :] = broken
    rows = attend(ops, s, [Chunk(good, 0, 40), Chunk(bad, 0, 40)])
    assert torch.equal(rows[0], attend(ops, s, [Chunk(good, 0, 40)])[0])
    assert rows[1][:20].isfinite().all()
    assert rows[1][20:].isnan().all()


def test_slots_before_the_window_never_reach_the_result(ops: Ops) -> None:
    s = Shape()
    chunk = Chunk(sequence(s, 70, 1), 69, 70)
    batch = make_batch(ops, s, [chunk])
    wanted = ops.paged_attention(**batch, num_heads=s.num_heads, scale=0.1, sliding_window=21)
    for page in batch["page_table"][0, : (70 - 21) // s.page_size].tolist():
        batch["keys"][page] = float("nan")
        batch["values"][page] = float("nan")
    assert wanted.isfinite().all()
    assert torch.equal(ops.paged_attention(**batch, num_heads=s.num_heads, scale=0.1, sliding_window=21), wanted)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=6),
    page_size=st.sampled_from([16, 32, 48]),
    window=st.sampled_from([0, 1, 31, 32, 33]),
)
def test_any_batch_equals_its_parts(lengths: list[tuple[int, int]], page_size: int, window: int) -> None:
    ops, s = load_ops("cpu"), Shape(3, 1, 32, page_size)
    chunks = [Chunk(sequence(s, max(a, b), i), min(a, b) - 1, max(a, b)) for i, (a, b) in enumerate(lengths)]
    together = attend(ops, s, chunks, sliding_window=window)
    for chunk, rows in zip(chunks, together, strict=True):
        one_by_one = [
            attend(ops, s, [Chunk(chunk.qkv, i, i + 1)], sliding_window=window)[0]
            for i in range(chunk.start, chunk.end)
        ]
        assert torch.equal(torch.cat(one_by_one), rows)


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_norm_rows_stand_alone(ops: Ops, out: torch.dtype) -> None:
    x, weight = torch.randn(50, 577), torch.randn(577)
    for run in (lambda x: ops.rms_norm(x, weight, 1e-5, out), lambda x: ops.layer_norm(x, weight, None, 1e-5, out)):
        assert torch.equal(run(x), torch.cat([run(row) for row in x.split(1)]))
