"""Decode steps as graphs: which one a step runs in, what its buffers hold, what is captured.

The graphs here are those of tests.support.call_graphs.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from octavo_engine.layers.batch import BATCH_SPECS
from octavo_engine.ops import TensorSpec
from octavo_engine.ops.cuda_graphs import Recorded, graph_sizes
from octavo_engine.ops.cuda_upload import Staging
from tests.support.call_graphs import CallGraphs

WIDTH = 12
VOCAB = 50


class Forward:
    """Stands for a model: each row's result is told from all that the row was given. Remembers its inputs."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, *tensors: Tensor) -> Tensor:
        self.seen = [x.clone() for x in tensors]
        ids, positions, slots, starts, lengths, table = tensors
        of_token = (ids + 100 * positions + 10_000 * slots).float()
        sequence = torch.searchsorted(starts[1:].contiguous(), torch.arange(len(ids)), right=True)
        of_sequence = (lengths + 100 * table[:, 0]).float()  # past its pages a table may hold anything
        return torch.stack((of_token, of_sequence[sequence]), dim=1)


def decode(rows: int, pages: int, seed: int = 0) -> list[Tensor]:
    """The inputs of a step of one token a sequence."""
    generator = torch.Generator().manual_seed(seed)

    def ints(*shape: int) -> Tensor:
        return torch.randint(1, VOCAB, shape, generator=generator, dtype=torch.int32)

    starts = torch.arange(rows + 1, dtype=torch.int32)
    return [ints(rows), ints(rows), ints(rows), starts, ints(rows), ints(rows, pages)]


def recorded(forward: Forward, rows: int = 40) -> tuple[Recorded, CallGraphs]:
    graphs = CallGraphs()
    staging = Staging(torch.device("cpu"))
    return Recorded(forward, BATCH_SPECS, staging, graphs, rows=rows, widths={"pages": WIDTH}), graphs


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


def test_captured_once_a_size_largest_first_with_rows_that_do_nothing() -> None:
    forward, told = Forward(), []
    graphs = CallGraphs()
    Recorded(
        forward,
        BATCH_SPECS,
        Staging(torch.device("cpu")),
        graphs,
        rows=9,
        widths={"pages": WIDTH},
        progress=lambda *report: told.append(report),
    )
    assert graphs.rows == [9, 8, 4, 2, 1]
    assert told == [
        ("capture", 0, 5, "decode steps of 9"),
        ("capture", 1, 5, "decode steps of 8"),
        ("capture", 2, 5, "decode steps of 4"),
        ("capture", 3, 5, "decode steps of 2"),
        ("capture", 4, 5, "decode steps of 1"),
        ("capture", 5, 5, ""),
    ]
    ids, positions, slots, starts, lengths, table = forward.seen
    assert (ids.tolist(), positions.tolist(), slots.tolist(), lengths.tolist()) == ([0], [0], [-1], [0])
    assert starts.tolist() == [0, 1]
    assert table.shape == (1, WIDTH)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (33, 40), (40, 40)])
def test_a_decode_step_runs_in_the_next_larger_graph(rows: int, size: int) -> None:
    forward = Forward()
    run, graphs = recorded(forward)
    given = decode(rows, 5)
    expected = Forward()(*given)
    out = run(*given)
    assert graphs.replays == {size: 1}
    assert torch.equal(out, expected)
    ids, positions, slots, starts, lengths, table = forward.seen
    for x, fill in ((ids, 0), (positions, 0), (slots, -1), (lengths, 0)):
        assert x[rows:].tolist() == [fill] * (size - rows)
    assert starts.tolist() == list(range(size + 1))
    assert torch.equal(table[:rows, :5], given[5])


def test_rows_of_a_larger_step_before_are_gone() -> None:
    forward = Forward()
    run, _ = recorded(forward)
    for step, rows in enumerate((40, 3, 17, 1, 33, 26, 40, 5)):
        given = decode(rows, 1 + step, seed=step)
        assert torch.equal(run(*given), Forward()(*given))
        assert torch.equal(forward.seen[5][:rows, : 1 + step], given[5])
        assert not forward.seen[4][rows:].any()
        assert (forward.seen[2][rows:] == -1).all()


def test_prefill_and_mixed_steps_run_call_by_call() -> None:
    forward = Forward()
    run, graphs = recorded(forward)
    mixed = decode(3, 5)
    mixed[0], mixed[1], mixed[2] = (torch.arange(7, dtype=torch.int32) for _ in range(3))
    mixed[3] = torch.tensor([0, 1, 5, 7], dtype=torch.int32)
    assert torch.equal(run(*mixed), Forward()(*mixed))
    beyond = decode(41, 5)
    assert torch.equal(run(*beyond), Forward()(*beyond))
    assert graphs.replays == {}


def test_without_graphs_every_step_runs_call_by_call() -> None:
    run = Recorded(Forward(), BATCH_SPECS, Staging(torch.device("cpu")), None, rows=40, widths={"pages": WIDTH})
    given = decode(4, 5)
    assert run.sizes == []
    assert torch.equal(run(*given), Forward()(*given))


def test_rows_of_floats() -> None:
    graphs = CallGraphs()
    spec = TensorSpec(("L", 6), torch.float32)
    run = Recorded(lambda x: x * 2, [spec], Staging(torch.device("cpu")), graphs, rows=16)
    for rows in (16, 3, 17, 8):
        x = torch.randn(rows, 6)
        assert torch.equal(run(x), 2 * x)
    assert graphs.replays == {16: 1, 4: 1, 8: 1}


def test_staged_tensors_are_copies_in_one_block() -> None:
    staging = Staging(torch.device("cpu"))
    given = [torch.arange(3, dtype=torch.int32), torch.randn(2, 5), torch.zeros(0, dtype=torch.int32), torch.ones(1)]
    kept = [x.clone() for x in given]
    sent = staging.upload(given)
    for x in given:
        x.zero_()
    for x, y in zip(kept, sent, strict=True):
        assert torch.equal(x, y)
        assert x.dtype == y.dtype
        assert y.data_ptr() % 64 == 0
    later = [staging.upload(decode(8, 3, seed=i)) for i in range(9)]
    for i, tensors in enumerate(later):
        for x, y in zip(decode(8, 3, seed=i), tensors, strict=True):
            assert torch.equal(x, y)
