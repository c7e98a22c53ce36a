"""Sampling and log-probabilities: every filter against the reference, exact draws, distributions, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo_engine.ops import Ops, load_ops
from octavo_engine.ops.reference import philox4x32

NEVER = float("-inf")


def draw(
    ops: Ops,
    logits: Tensor,
    *,
    temperature: float | list[float] = 1.0,
    top_k: int = 0,
    top_p: float | Tensor = 1.0,
    min_p: float = 0.0,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    adjust: list[list[tuple[int, float, float]]] | None = None,
    mask: Tensor | None = None,
    mask_rows: Tensor | None = None,
) -> Tensor:
    """`Ops.sample` with one setting for all rows; adjust: (id, scale, add) entries a row."""
    rows = len(logits)
    entries = adjust or [[]] * rows
    flat = [entry for row in entries for entry in row]
    starts = torch.tensor([0, *(len(row) for row in entries)]).cumsum(0)
    return ops.sample(
        logits,
        torch.tensor(temperature if isinstance(temperature, list) else [temperature] * rows),
        torch.full((rows,), top_k, dtype=torch.int32),
        top_p if isinstance(top_p, Tensor) else torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        torch.arange(rows) if seeds is None else seeds,
        torch.arange(rows, dtype=torch.int32) if positions is None else positions,
        starts.int(),
        torch.tensor([entry[0] for entry in flat], dtype=torch.int32),
        torch.tensor([entry[1] for entry in flat], dtype=torch.float32),
        torch.tensor([entry[2] for entry in flat], dtype=torch.float32),
        mask,
        mask_rows,
    )


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def pack_mask(allowed: Tensor) -> Tensor:
    """[M, V] bool -> [M, ceil(V/32)] int32 bit sets."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32)).view(len(allowed), -1, 32)
    words = (padded.long() << torch.arange(32)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


# Known answers of Random123 (kat_vectors): counter, key, output, each least significant word first.
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    def whole(parts: tuple[int, ...]) -> int:
        return sum(part << 32 * i for i, part in enumerate(parts))

    assert philox4x32(whole(key), whole(counter)) == words


def test_a_uniform_row_of_65536_shows_the_random_number(ops: Ops) -> None:
    seeds = torch.tensor([0, 1, -1, 1 << 40, -(1 << 63), (1 << 63) - 1])
    positions = torch.tensor([0, 5, 77, (1 << 31) - 1, 3, 9], dtype=torch.int32)
    wanted = [philox4x32(int(s), int(p))[0] >> 16 for s, p in zip(seeds, positions, strict=True)]
    assert wanted[0] == 0x6627
    assert draw(ops, torch.zeros(6, 1 << 16), seeds=seeds, positions=positions).tolist() == wanted


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 5.0},
    "freezing": {"temperature": 1e-6},
    "top-k-1": {"top_k": 1},
    "top-k-3": {"top_k": 3},
    "top-k-all": {"top_k": 10**6},
    "top-p": {"top_p": 0.9},
    "top-p-tiny": {"top_p": 1e-6},
    "top-p-flat": {"top_p": 0.99, "temperature": 20.0},
    "min-p": {"min_p": 0.05},
    "min-p-1": {"min_p": 1.0},
    "all": {"top_k": 20, "top_p": 0.8, "min_p": 0.01, "temperature": 1.7},
    "k-and-p": {"top_k": 50, "top_p": 0.95},
    "p-and-min-p": {"top_p": 0.7, "min_p": 0.001, "temperature": 2.0},
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("vocab", [1, 2, 17, 255, 1000, 5003])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_draw_the_token_of_the_reference(ops: Ops, reference: Ops, name: str, vocab: int, ties: bool) -> None:
    logits = randn(12, vocab, seed=vocab) * 4
    if ties:
        logits = logits.round()
    assert torch.equal(draw(ops, logits, **FILTERS[name]), draw(reference, logits, **FILTERS[name]))


@settings(max_examples=150)
@given(
    logits=st.lists(st.sampled_from([NEVER, -4.0, -1.0, 0.0, 0.5, 0.75, 3.0]), min_size=1, max_size=70),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([1.0, 0.999, 0.85, 0.4, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_any_filters_draw_the_token_of_the_reference(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    results = [
        draw(
            load_ops(device),
            torch.tensor([logits]),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seeds=torch.tensor([seed]),
        )
        for device in ("cpu", "reference")
    ]
    assert torch.equal(*results)


def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_a_tie(ops: Ops) -> None:
    logits = torch.zeros(1, 40)
    logits[0, [3, 30]] = 1.0
    drawn = draw(ops, logits.expand(600, -1), top_k=5, temperature=3.0)
    assert set(drawn.tolist()) == {3, 30, 0, 1, 2}


def test_top_p_keeps_the_shortest_prefix_that_reaches_it(ops: Ops) -> None:
    # Doubled masses of 4, 2, 1, 1 eighths: 0.75 is reached by two tokens exactly, a little more needs the third.
    logits = torch.tensor([[1.0, 8.0, 1.0, 2.0, 4.0]]).log()[:, [0, 2, 3, 4]]
    assert set(draw(ops, logits.expand(400, -1), top_p=0.75).tolist()) == {2, 3}
    assert set(draw(ops, logits.expand(400, -1), top_p=0.76).tolist()) == {0, 2, 3}


def test_the_boundary_of_top_p_shows_masses_to_24_bits(ops: Ops, reference: Ops) -> None:
    """Of two tokens, the second is kept from the first top_p on that is more than the share of the first."""
    rows, generator = 200, torch.Generator().manual_seed(12)
    logits = torch.stack((torch.zeros(rows), -torch.rand(rows, generator=generator) * 2), 1)
    temperature = 0.5 + torch.rand(rows, generator=generator)
    share = 1 / (1 + (logits[:, 1].double() / temperature.double()).exp())
    seed = next(s for s in range(20_000) if philox4x32(s, 0)[0] > 0.9995 * 2**32)  # draws the second where it is kept
    kept = []
    for ulps in range(-8, 9):
        top_p = (share.float().view(torch.int32) + ulps).view(torch.float32)
        options: dict[str, Any] = {
            "temperature": temperature.tolist(),
            "top_p": top_p,
            "seeds": torch.full((rows,), seed),
            "positions": torch.zeros(rows, dtype=torch.int32),
        }
        kept.append(draw(ops, logits, **options))
        assert torch.equal(kept[-1], draw(reference, logits, **options))
    assert not kept[0].any()
    assert kept[-1].all()


def test_adjustments(ops: Ops, reference: Ops) -> None:
    logits = randn(40, 300, seed=8) * 3
    adjust = [[(int(i), 1.0 + r % 3, -0.5 * (r % 4)) for i in torch.randperm(300)[: 3 * r].tolist()] for r in range(40)]
    before = logits.clone()
    for temperature in (0.0, 1.0):
        got = draw(ops, logits, temperature=temperature, adjust=adjust, top_p=0.9)
        assert torch.equal(got, draw(reference, logits, temperature=temperature, adjust=adjust, top_p=0.9))
    assert torch.equal(logits, before)


def test_a_repetition_penalty_divides_positive_and_multiplies_negative_logits(ops: Ops) -> None:
    logits = torch.tensor([[2.0, 1.5, -9.0], [-1.0, -1.5, -9.0]])
    adjust = [[(0, 2.0, 0.0)], [(0, 2.0, 0.0)]]
    assert draw(ops, logits, temperature=0.0, adjust=adjust).tolist() == [1, 1]


def test_masks(ops: Ops, reference: Ops) -> None:
    logits, vocab = randn(9, 131, seed=2), 131
    allowed = torch.rand(2, vocab, generator=torch.Generator().manual_seed(4)) < 0.1
    allowed[:, 130] = True
    options = {"mask": pack_mask(allowed), "mask_rows": torch.tensor([0, 1, -1] * 3, dtype=torch.int32)}
    for temperature in (0.0, 1.0):
        got = draw(ops, logits, temperature=temperature, **options)
        assert torch.equal(got, draw(reference, logits, temperature=temperature, **options))
        assert all(allowed[row % 3, token] for row, token in enumerate(got.tolist()) if row % 3 < 2)


@pytest.mark.parametrize("vocab", [1, 15, 16, 100, 4099])
def test_greedy_takes_the_lowest_id_of_the_best(ops: Ops, vocab: int) -> None:
    logits = randn(8, vocab).round()
    wanted = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert draw(ops, logits, temperature=0.0).tolist() == wanted


def test_strange_logits(ops: Ops, reference: Ops) -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[nan] * 3, [NEVER] * 3, [NEVER, nan, -5.0], [1.0, inf, inf], [nan, 2.0, 1.0], [3e38, -3e38, 0.0]]
    ).repeat(1, 7)
    for temperature in (0.0, 1.0):
        got = draw(ops, logits, temperature=temperature)
        assert torch.equal(got, draw(reference, logits, temperature=temperature))
        assert got[:2].tolist() == [-1, -1], "nothing to choose from"


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 2.0}])
def test_drawn_tokens_follow_the_distribution(ops: Ops, options: dict[str, Any]) -> None:
    """Pearson's chi-square of 20,000 draws of fixed seeds, against 3.5 standard deviations above its mean."""
    row, draws = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -0.5, 0.25, -8.0, 1.0]), 20_000
    p = (row / options.get("temperature", 1.0)).double().softmax(0)
    order = p.sort(descending=True, stable=True).indices
    kept = torch.zeros(len(row), dtype=torch.bool)
    limit = int((p[order].cumsum(0) < options.get("top_p", 1.0) - 1e-9).sum()) + 1
    kept[order[: min(limit, options.get("top_k", len(row)))]] = True
    kept &= p >= options.get("min_p", 0.0) * p.max()
    expected = torch.where(kept, p, 0.0) / p[kept].sum() * draws
    seeds = torch.arange(draws) * 7919 - (1 << 40)
    drawn = draw(ops, row.expand(draws, -1).contiguous(), seeds=seeds, positions=seeds.int(), **options)
    counts = drawn.long().bincount(minlength=len(row)).double()
    assert (counts[~kept] == 0).all()
    degrees = int(kept.sum()) - 1
    statistic = ((counts - expected)[kept].square() / expected[kept]).sum()
    assert statistic < degrees + 3.5 * (2 * degrees) ** 0.5


def test_a_row_draws_the_same_token_in_any_batch_and_with_any_threads(ops: Ops) -> None:
    logits, seeds = randn(33, 3001, seed=9) * 3, torch.arange(33) * 31
    positions = torch.arange(33, dtype=torch.int32)
    together = draw(ops, logits, top_p=0.9, seeds=seeds, positions=positions)
    for r in range(33):
        row = slice(r, r + 1)
        assert draw(ops, logits[row], top_p=0.9, seeds=seeds[row], positions=positions[row]) == together[r]
    for threads in (1, 3):
        other = load_ops("cpu", isa=ops.isa, num_threads=threads)  # type: ignore[attr-defined]
        assert torch.equal(draw(other, logits, top_p=0.9, seeds=seeds, positions=positions), together)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top", [0, 1, 5, 20, 300])
@pytest.mark.parametrize("vocab", [300, 5003])
def test_logprobs(ops: Ops, reference: Ops, vocab: int, top: int, ties: bool) -> None:
    logits = randn(7, vocab, seed=top) * 5
    if ties:
        logits = logits.round()
    tokens = torch.arange(7, dtype=torch.int32) * 11 % vocab
    got, wanted = ops.logprobs(logits, tokens, top), reference.logprobs(logits, tokens, top)
    torch.testing.assert_close(got[0], wanted[0], atol=2e-5, rtol=1e-6)
    assert torch.equal(got[1], wanted[1])
    assert torch.equal(got[2], wanted[2])
    torch.testing.assert_close(got[3], wanted[3], atol=2e-5, rtol=1e-6)


def test_logprobs_rows_stand_alone(ops: Ops) -> None:
    logits, tokens = randn(20, 1234) * 3, torch.arange(20, dtype=torch.int32)
    together = ops.logprobs(logits, tokens, 4)
    alone = [ops.logprobs(logits[r : r + 1], tokens[r : r + 1], 4) for r in range(20)]
    for i, column in enumerate(together):
        assert torch.equal(column, torch.cat([row[i] for row in alone]))


def test_refusals_print_the_numbers(best_ops: Ops) -> None:
    with pytest.raises(ValueError, match=r"adjust_ids\[0\] is 9; the vocabulary has 4"):
        draw(best_ops, torch.zeros(1, 4), adjust=[[(9, 1.0, 0.0)]])
    with pytest.raises(ValueError, match="the best 5 of a vocabulary of 4"):
        best_ops.logprobs(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int32), 5)
