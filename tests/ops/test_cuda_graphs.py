"""Steps as graphs: which one a step runs in, what is captured; and inputs as one copy.

The graphs here are those of tests.support.call_graphs. What a decode step finds at its addresses: tests.execution.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from octavo_engine.ops.cuda_graphs import Captured, graph_sizes
from octavo_engine.ops.cuda_upload import Staging
from tests.support.call_graphs import CallGraphs


def test_sizes_serve_every_count_and_are_not_far_apart() -> None:
    assert graph_sizes(0) == []
    assert graph_sizes(1) == [1]
    assert graph_sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert graph_sizes(128)[-3:] == [64, 96, 128]
    for most in (1, 5, 24, 200, 256, 700, 3000):
        sizes = graph_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
        assert all(b <= 2 * a and b - a <= 128 for a, b in itertools.pairwise(sizes))


def test_captured_once_a_size_largest_first() -> None:
    graphs, told = CallGraphs(), []
    Captured(torch.ones, 9, graphs, lambda *report: told.append(report))
    assert graphs.rows == [9, 8, 4, 2, 1]
    assert told == [
        ("capture", 0, 5, "decode steps of 9"),
        ("capture", 1, 5, "decode steps of 8"),
        ("capture", 2, 5, "decode steps of 4"),
        ("capture", 3, 5, "decode steps of 2"),
        ("capture", 4, 5, "decode steps of 1"),
        ("capture", 5, 5, ""),
    ]


def test_a_step_runs_in_the_next_larger_graph() -> None:
    graphs, lying, sizes = CallGraphs(), torch.zeros(40), []

    def work(rows: int) -> Tensor:
        sizes.append(rows)
        return lying[:rows] * 2

    run, expected = Captured(work, 40, graphs), dict.fromkeys(graph_sizes(40), 0)
    for rows, size in [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (33, 40), (40, 40), (3, 4)]:
        lying.copy_(torch.arange(40.0) + rows)
        assert run(rows).equal(2 * lying[:rows])
        expected[size] += 1
        assert sizes[-1] == size
        assert graphs.replays == {n: count for n, count in expected.items() if count}
    with pytest.raises(IndexError):
        run(41)


def test_staged_tensors_are_copies_in_one_block() -> None:
    staging = Staging(torch.device("cpu"))

    def ints(*shape: int, seed: int) -> Tensor:
        return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)

    given = [torch.arange(3, dtype=torch.int32), torch.randn(2, 5), torch.zeros(0, dtype=torch.int32), torch.ones(1)]
    kept = [x.clone() for x in given]
    sent = staging.upload(given)
    for x in given:
        x.zero_()
    for x, y in zip(kept, sent, strict=True):
        assert torch.equal(x, y)
        assert x.dtype == y.dtype
        assert y.data_ptr() % 64 == 0
    later = [staging.upload([ints(8, seed=i), ints(8, 3, seed=i)]) for i in range(9)]
    for i, (flat, wide) in enumerate(later):
        assert torch.equal(flat, ints(8, seed=i))
        assert torch.equal(wide, ints(8, 3, seed=i))
