"""Recorded programs: what can be recorded, where buffers lie, what is kept alive, and that errors pass through."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from octavo_engine.ops import KeptRows, Ops, TensorSpec, load_ops
from octavo_engine.ops.program import NotRecordable, Program, arena_offsets

X = TensorSpec(("T", 48), torch.float32)
IDS = TensorSpec(("T",), torch.int32)
LIVES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(0, 6)).map(lambda b: (64 * b[0], b[1], b[1] + b[2])),
    max_size=40,
)


@given(LIVES)
def test_buffers_alive_together_never_share_a_byte(buffers: list[tuple[int, int, int]]) -> None:
    offsets, size = arena_offsets(buffers)
    placed = list(zip(offsets, buffers, strict=True))
    for i, (a, (a_size, a_first, a_last)) in enumerate(placed):
        assert a % 64 == 0
        assert a + a_size <= size
        for b, (b_size, b_first, b_last) in placed[:i]:
            if a_first <= b_last and b_first <= a_last:
                assert a + a_size <= b or b + b_size <= a


def test_a_place_is_free_after_its_last_reader() -> None:
    assert arena_offsets([(64, 0, 1), (128, 1, 2), (64, 2, 3), (64, 3, 4)]) == ([0, 64, 0, 64], 192)


def chain(ops: Ops, weight: Tensor, depth: int) -> Any:
    packed = ops.pack_linear(weight)

    def forward(x: Tensor) -> Tensor:
        h = ops.rms_norm(x, torch.ones(48), 1e-5, torch.float32)
        for _ in range(depth):
            h = ops.linear(h, packed)
        return h

    return forward


def test_runs_with_any_number_of_rows_one_after_the_other(ops: Ops) -> None:
    forward = chain(ops, torch.randn(48, 48) / 7, 5)
    program: Any = ops.record(forward, [X])
    assert isinstance(program, Program)
    assert program.num_calls == 6
    assert program.row_bytes == 2 * 192  # two neighbours at a time, whatever the depth; the result is the caller's
    for rows in (1, 7, 64, 5000, 1, 0, 17):
        x = torch.randn(rows, 48)
        assert torch.equal(program(x), forward(x))


def test_results_are_not_overwritten_by_the_next_run(best_ops: Ops) -> None:
    forward = chain(best_ops, torch.randn(48, 48), 2)
    program: Any = best_ops.record(forward, [X])
    inputs = [torch.randn(3, 48) for _ in range(4)]
    results = [program(x) for x in inputs]
    for x, result in zip(inputs, results, strict=True):
        assert torch.equal(result, forward(x))


def test_two_numbers_of_rows_in_one_program(best_ops: Ops) -> None:
    table = torch.randn(9, 48)
    weight = best_ops.pack_linear(torch.randn(16, 48))
    eye = best_ops.pack_linear(torch.eye(48))

    def forward(x: Tensor, ids: Tensor) -> Tensor:
        h = best_ops.rms_norm(x, torch.ones(48), 1e-5, torch.float32)
        best_ops.linear_add_(h, h, eye)
        rows = best_ops.embedding(ids, table)
        best_ops.linear(h, weight)
        return best_ops.linear(rows, weight)

    program: Any = best_ops.record(forward, [X, TensorSpec(("L",), torch.int32)])
    for t, length in ((3, 50), (50, 3), (1, 1)):
        x, ids = torch.randn(t, 48), torch.randint(9, (length,), dtype=torch.int32)
        assert torch.equal(program(x, ids), forward(x, ids))


def two_layers(ops: Ops) -> Any:
    """A forward over one-headed attention whose second layer's rows are needed by nobody but their reader."""
    size, page = 16, 16
    torch.manual_seed(0)
    weights = [
        [ops.pack_linear(torch.randn(3 * size, size) / 4), ops.pack_linear(torch.randn(size, size))] for _ in range(2)
    ]
    caches = [(torch.zeros(4, 1, size, page, 1), torch.zeros(4, 1, page, size, 1)) for _ in weights]

    def forward(x: Tensor, slots: Tensor, query_start: Tensor, seq_lens: Tensor, page_table: Tensor) -> Tensor:
        h = ops.rms_norm(x, torch.ones(size), 1e-5, torch.float32)
        for (qkv_weight, out), (keys, values) in zip(weights, caches, strict=True):
            qkv = ops.linear(h, qkv_weight)
            ops.rope_and_cache(qkv, keys, values, slots, slots, None, num_heads=1)
            mixed = ops.paged_attention(qkv, keys, values, page_table, query_start, seq_lens, num_heads=1, scale=0.25)
            ops.linear_add_(h, mixed, out)
        return h

    return forward, caches


def test_only_the_kept_rows_are_computed_behind_the_last_write(ops: Ops) -> None:
    forward, caches = two_layers(ops)
    ints = [TensorSpec(shape, torch.int32) for shape in (("T",), ("S + 1",), ("S",), ("S", "pages"))]
    inputs = [TensorSpec(("T", 16), torch.float32), *ints]
    program: Any = ops.record(forward, inputs, KeptRows(writes=1, inputs=(2, 3, 4)))
    whole: Any = ops.record(forward, inputs)
    assert program.num_calls == whole.num_calls + 2  # of h and of qkv
    # Two sequences of 20 and 11 tokens, on pages 0 and 1, and on page 3.
    slots = torch.tensor([*range(20), *range(48, 59)], dtype=torch.int32)
    table = torch.tensor([[0, 1], [3, 3]], dtype=torch.int32)
    lengths = torch.tensor([20, 11], dtype=torch.int32)
    step = torch.randn(31, 16), slots, torch.tensor([0, 20, 31], dtype=torch.int32), lengths, table
    expected = forward(*step)
    written = [cache.clone() for pair in caches for cache in pair]
    for rows in ([19, 30], [30], [], [19, 19, 19, 30], [4, 25]):
        for pair in caches:
            for cache in pair:
                cache.fill_(torch.nan)
        kept = torch.tensor(rows, dtype=torch.int32)
        of = torch.tensor([0 if row < 20 else 1 for row in rows], dtype=torch.int64)
        ends = torch.tensor([row + 1 if row < 20 else row - 19 for row in rows], dtype=torch.int32)
        starts = torch.arange(len(rows) + 1, dtype=torch.int32)
        assert torch.equal(program(*step, kept, starts, ends, table[of]), expected[kept.long()])
        for cache, before in zip([cache for pair in caches for cache in pair], written, strict=True):
            seen = cache.isfinite()
            assert torch.equal(cache[seen], before[seen])  # every token's key and value all the same
            assert seen.sum() == 31 * 16


def test_rows_that_no_write_reads_cannot_be_kept(best_ops: Ops) -> None:
    with pytest.raises(NotRecordable, match="no call reads input 0"):
        best_ops.record(lambda ids, x: chain(best_ops, torch.eye(48), 1)(x), [IDS, X], KeptRows(0, ()))


def test_weights_live_as_long_as_the_program() -> None:
    ops = load_ops("cpu")
    forward = chain(ops, torch.full((48, 48), 1 / 48), 3)
    program: Any = ops.record(forward, [X])
    expected = forward(torch.ones(5, 48))
    del forward
    gc.collect()
    [torch.full((48, 48), 7.0) for _ in range(50)]
    assert torch.equal(program(torch.ones(5, 48)), expected)


def test_what_cannot_be_recorded_is_named_and_leaves_the_ops_as_they_were(best_ops: Ops) -> None:
    weight = best_ops.pack_linear(torch.randn(48, 48))

    def by_rows(x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else best_ops.linear(x, weight)

    refused = {
        r"asked a tensor for \.to;": lambda x: x.to(torch.bfloat16),
        "computes by native ops alone": lambda x: x[:1],
        "number of rows 'T' is not known": by_rows,
        "returns a tensor that one of its ops made": lambda x: x,
    }
    for message, forward in refused.items():
        with pytest.raises(NotRecordable, match=message):
            best_ops.record(forward, [X])
    x = torch.randn(2, 48)
    assert best_ops.linear(x, weight).shape == (2, 48)


def test_wrong_inputs_are_refused_by_the_ops_and_the_next_run_works(best_ops: Ops) -> None:
    table = torch.randn(9, 48)
    program: Any = best_ops.record(lambda ids: best_ops.embedding(ids, table), [IDS])
    with pytest.raises(ValueError, match=r"ids\[1\] is 9; the table has 9 rows"):
        program(torch.tensor([1, 9], dtype=torch.int32))
    with pytest.raises(TypeError, match="ids is int64, not int32"):
        program(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="takes 2 tensors; got 3"):
        program(torch.tensor([1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32))
    ids = torch.tensor([8, 0], dtype=torch.int32)
    assert torch.equal(program(ids), table[ids.long()])
