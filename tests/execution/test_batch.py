from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_engine.execution.batch import BatchBuilder, BuiltBatch
from octavo_engine.layers.rope import Regimes
from octavo_engine.scheduling.plan import PENDING, Again, SeqStep

PAGE = 16
KV = [(torch.zeros(1), torch.zeros(1))]


def builder(max_num_seqs: int = 8, max_model_len: int = 100) -> BatchBuilder:
    return BatchBuilder(KV, page_size=PAGE, max_num_seqs=max_num_seqs, max_model_len=max_model_len)


def check_rows(made: BatchBuilder, seqs: list[SeqStep], tables: dict[int, list[int]]) -> None:
    """What a captured step reads, and that the rows behind are nobody's."""
    rows, count = made.rows, len(seqs)
    assert rows.count == count
    assert rows.seq_slots.tolist() == [seq.slot for seq in seqs] + [8] * (16 - count)
    assert rows.moving[0].tolist() == [seq.start for seq in seqs] + [0] * (16 - count)
    assert rows.moving[2].tolist() == [seq.start + 1 for seq in seqs] + [0] * (16 - count)
    pages = [tables[seq.slot][seq.start // PAGE] for seq in seqs]
    offsets = [seq.start % PAGE for seq in seqs]
    assert rows.moving[1].tolist() == [p * PAGE + at for p, at in zip(pages, offsets, strict=True)] + [-1] * (
        16 - count
    )
    assert rows.pages[:count].tolist() == pages
    assert rows.entries.tolist() == [7 * seq.slot + seq.start // PAGE for seq in seqs] + [7 * 8] * (16 - count)
    assert rows.adapters.tolist() == [-1] * 16
    parts = rows.of(torch.from_numpy(rows.block))
    for part, field in zip(parts, (rows.seq_slots, rows.entries, rows.moving, rows.pages, rows.adapters), strict=True):
        assert part.numpy().tolist() == field.tolist()


def check(built: BuiltBatch, seqs: list[SeqStep], tables: dict[int, list[int]]) -> None:
    """Against the definition of every field, one token at a time."""
    batch = built.batch
    token_ids, positions, slots, query_start, draw_rows = [], [], [], [0], []
    for seq in seqs:
        for i, token in enumerate(seq.tokens):
            position = seq.start + i
            token_ids.append(token)
            positions.append(position)
            slots.append(tables[seq.slot][position // PAGE] * PAGE + position % PAGE)
        query_start.append(len(token_ids))
        draw_rows += [len(token_ids) - 1] * len(seq.samplers)
    assert batch.token_ids.tolist() == token_ids
    assert batch.positions.tolist() == positions
    assert batch.slots.tolist() == slots
    assert batch.query_start.tolist() == query_start
    assert batch.seq_lens.tolist() == [seq.start + len(seq.tokens) for seq in seqs]
    assert batch.page_table.shape[1] == max(-(-(seq.start + len(seq.tokens)) // PAGE) for seq in seqs)
    for row, seq in zip(batch.page_table.tolist(), seqs, strict=True):
        used = -(-(seq.start + len(seq.tokens)) // PAGE)
        assert row[:used] == tables[seq.slot][:used]
    for tensor in (batch.token_ids, batch.positions, batch.slots, batch.query_start, batch.seq_lens):
        assert tensor.dtype == torch.int32
    assert batch.page_table.dtype == torch.int32
    assert batch.page_table.is_contiguous()
    assert built.draw_rows.dtype == torch.int32
    assert batch.kv is KV
    assert built.draw_slots == [slot for seq in seqs for slot in seq.samplers]
    assert built.draw_rows.tolist() == draw_rows
    assert not built.every_row or draw_rows == list(range(len(token_ids)))
    if not built.every_row:
        rows, starts, lengths, pages = built.kept
        assert rows.tolist() == draw_rows
        assert starts.tolist() == list(range(len(draw_rows) + 1))
        assert lengths.tolist() == [positions[row] + 1 for row in draw_rows]
        drawn = [seq.slot for seq in seqs for _ in seq.samplers]
        for row, slot, length in zip(pages.tolist(), drawn, lengths.tolist(), strict=True):
            assert row[: -(-length // PAGE)] == tables[slot][: -(-length // PAGE)]


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.booleans())
def test_every_field_over_many_steps(seed: int, decode_only: bool) -> None:
    rng = random.Random(seed)
    build = builder().build
    tables: dict[int, list[int]] = {slot: [] for slot in range(8)}
    lengths = dict.fromkeys(range(8), 0)
    for _ in range(12):
        seqs = []
        for slot in rng.sample(range(8), rng.randint(1, 8)):
            if lengths[slot] > 60 and rng.random() < 0.5:  # the slot goes to another sequence
                tables[slot], lengths[slot] = [], 0
            start = lengths[slot]
            count = 1 if decode_only else rng.choice([1, 1, 3, 15, 16, 17, 33])
            count = min(count, 100 - start)
            if not count:
                continue
            known = len(tables[slot])
            while len(tables[slot]) * PAGE < start + count:
                tables[slot].append(rng.randrange(1000))
            lengths[slot] += count
            seqs.append(
                SeqStep(
                    slot,
                    start,
                    [rng.randrange(500) for _ in range(count)],
                    known,
                    tables[slot][known:],
                    [slot] if decode_only else rng.choice([[], [slot], [slot, 8, 9]]),
                    rng.choice([-1, -1, 2]),
                )
            )
        if seqs:
            check(build(seqs), seqs, tables)
            check(build(seqs), seqs, tables)  # a step may be run again


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_the_same_sequences_decode_on(seed: int) -> None:
    """Mostly one token further each, over page boundaries, several at a time; now and then another batch, a fork, a
    page that was replaced, tokens that are not known, a prompt's chunk beside them, or a step twice."""
    rng = random.Random(seed)
    made = builder()
    build = made.build
    tables: dict[int, list[int]] = {slot: [rng.randrange(1000)] for slot in range(5)}
    lengths = {slot: rng.choice([PAGE - 3, rng.randrange(PAGE - 1)]) for slot in range(5)}
    build([SeqStep(slot, 0, [0] * (lengths[slot] + 1), 0, tables[slot], []) for slot in range(5)])
    order = [3, 0, 4]
    steps: list[SeqStep] = []
    more: list[SeqStep] = []
    further = 0
    for _ in range(40):
        change = rng.random()
        if change < 0.15:
            order = rng.sample(range(5), rng.randint(1, 5))
        if change < 0.2:
            steps = []  # what is said of the step before is of no use
        seqs, paged = [], []
        for slot in order:
            start = lengths[slot] = lengths[slot] + 1
            new = [rng.randrange(1000)] if start == len(tables[slot]) * PAGE else []
            offset = len(tables[slot]) if new else 0
            if rng.random() < 0.05 and not new:
                offset, new = len(tables[slot]) - 1, [rng.randrange(1000)]
                tables[slot].pop()
            tables[slot] += new
            samplers = [slot] if change > 0.15 else [slot, 6]
            token = PENDING if change > 0.6 else rng.randrange(500)
            paged += [(len(seqs), offset, new)] if new else []
            seqs.append(SeqStep(slot, start, [token], offset if new else 0, new, samplers))
        if steps:
            further += 1
            again = Again(further, [] if change > 0.6 else [seq.tokens[0] for seq in seqs], paged)
            assert again.of(steps) == seqs
            more = []
            if rng.random() < 0.3:
                start, count = rng.choice([0, 5, 20]), rng.choice([1, 7, 40])
                tables[7] = [rng.randrange(1000) for _ in range(4)]
                samplers = rng.choice([[], [7], [7, 6]])
                more = [SeqStep(7, start, [rng.randrange(500) for _ in range(count)], 0, tables[7], samplers)]
            built = build(steps, again, more)
            if more:
                assert built.paged is not None
                seqs += more
        else:
            built = build(seqs)
            steps, further = ([], 0) if change <= 0.15 else (seqs, 0)
        check(built, seqs, tables)
        assert built.every_pending == (built.every_row and all(seq.tokens == [PENDING] for seq in seqs))
        if built.every_row:
            check_rows(made, seqs, tables)
        if change > 0.9:
            check(build(steps, again, more) if further else build(seqs), seqs, tables)
            check(build(seqs[:1]), seqs[:1], tables)


def test_a_page_table_entry_may_be_replaced() -> None:
    build = builder().build
    build([SeqStep(3, 0, list(range(20)), 0, [5, 6], [])])
    swapped = [SeqStep(3, 20, [1], 1, [9], [3])]  # copy on write gave it another second page
    check(build(swapped), swapped, {3: [5, 9]})


def test_the_longest_sequence_fits_and_no_longer_one() -> None:
    build = builder(max_model_len=33).build
    seqs = [SeqStep(0, 0, list(range(33)), 0, [7, 8, 9], [0])]
    check(build(seqs), seqs, {0: [7, 8, 9]})
    with pytest.raises(IndexError):
        build([SeqStep(0, 48, [1], 3, [10], [0])])


def test_another_sequence_is_no_next_step_of_the_last_one() -> None:
    """It may stand where the one before it in the slot would have gone on: all but a token of its prompt was found."""
    made = BatchBuilder(KV, page_size=PAGE, max_num_seqs=4, max_model_len=128, regimes=Regimes((50, 100), 1000))
    before, after = [SeqStep(0, 31, [5], 0, [3, 4], [0])], [SeqStep(0, 32, [5], 0, [7, 8, 9], [0], regime=100)]
    made.start(0, 2)
    adapters = made.build(before).adapters
    assert adapters is not None
    assert adapters.tolist() == [2]
    made.start(0, -1)
    built = made.build(after)
    assert built.batch.positions.tolist() == [1032]
    assert built.adapters is None


def test_rows_of_sequences_that_have_no_table() -> None:
    """They stand behind the tables, in the order of the step's tokens; and change with every step."""
    made = BatchBuilder(KV, page_size=PAGE, max_num_seqs=4, max_model_len=128, regimes=Regimes((50,), 100, growth=0.5))
    seqs = [
        SeqStep(0, 7, [5], 0, [3], [0], regime=50),
        SeqStep(1, 60, [5, 6, 7], 0, [4, 5, 6, 7], [1], regime=90),
        SeqStep(2, 70, [8], 0, [8, 9, 10, 11, 12], [2], regime=71),
    ]
    built = made.build(seqs)
    assert built.batch.positions.tolist() == [7, 101, 102, 103, 104]
    assert built.own == [(1, 90, 60, 63), (4, 71, 70, 71)]
    assert built.own_rows is not None
    assert built.own_rows.tolist() == [101, 102, 103, 104]
    for start in (71, 72):
        built = made.build([SeqStep(0, start, [5], 4, [3], [0], regime=71)])
        assert (built.batch.positions.tolist(), built.own) == ([100], [(0, 71, start, start + 1)])
    assert made.build([SeqStep(0, 8, [5], 0, [3], [0], regime=50)]).own_rows is None
