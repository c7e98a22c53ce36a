"""From a Plan's sequences to the tensors of layers.batch.Batch. Hot: it runs once a step on the engine's one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_engine.execution.drafts import ahead_of
from octavo_engine.execution.staging import LINE
from octavo_engine.layers.batch import Batch
from octavo_engine.layers.rope import OwnRows, Regimes
from octavo_engine.scheduling.plan import PENDING, Again, SeqStep

__all__ = ["BatchBuilder", "BuiltBatch", "DecodeRows", "DecodeTensors"]


Paged = tuple[NDArray[np.int64], NDArray[np.int32]]


class DecodeTensors(NamedTuple):
    """What DecodeRows has, as tensors."""

    seq_slots: torch.Tensor
    entries: torch.Tensor
    moving: torch.Tensor
    pages: torch.Tensor
    adapters: torch.Tensor


class DecodeRows:
    """What is told of each sequence where every one brings a token and draws one: fields of R entries, one after the
    other in `block`, int32 [10 R]. R: max_num_seqs and what makes it a multiple of LINE.

    seq_slots: int64, the sequences' slots. entries, pages: which entry of the slots' page tables, numbered over all of
    them, names the page that the token is written to, int64, and that page. moving: [4, R], what is one more with every
    step that they go on: positions, slots and seq_lens as in Batch, and the place of what is drawn in the output, which
    is the runner's to say. adapters: as in BuiltBatch, -1 for none.
    Beyond the first `count` entries stand sequences of no tokens, which write nothing, in a slot that none has.
    """

    def __init__(self, max_num_seqs: int, width: int) -> None:
        """width: entries of a slot's page table."""
        most = max_num_seqs + -max_num_seqs % LINE
        self.count, self.block = 0, np.zeros(10 * most, np.int32)
        wide, self.moving = self.block[: 4 * most].view(np.int64), self.block[4 * most : 8 * most].reshape(4, most)
        self.seq_slots, self.entries = wide[:most], wide[most:]
        self.pages, self.adapters = self.block[8 * most : 9 * most], self.block[9 * most :]
        self._fills = ((self.seq_slots, max_num_seqs), (self.entries, max_num_seqs * width), (self.adapters, -1))
        self._clear(0, most)

    def begin(self, count: int) -> None:
        """So many sequences, of which all is to be said."""
        self._clear(count, self.count)
        self.count = count

    def of(self, block: torch.Tensor) -> DecodeTensors:
        """The parts of a copy of `block`."""
        most = len(self.pages)
        wide, moving, narrow = block.split_with_sizes([4 * most, 4 * most, 2 * most])
        seq_slots, entries = wide.view(torch.int64).view(2, most)
        pages, adapters = narrow.view(2, most)
        return DecodeTensors(seq_slots, entries, moving.view(4, most), pages, adapters)

    def _clear(self, start: int, stop: int) -> None:
        self.moving[:, start:stop] = 0
        self.moving[1, start:stop] = -1
        for field, fill in self._fills:
            field[start:stop] = fill


@dataclass
class BuiltBatch:
    """A Batch and who draws from it. seq_slots: the sequences' slots.

    draw_slots: the slots that draw a token, in the order of the plan's samplers; draw_rows: the row of T that each
    draws from, int32. every_row: draw_rows is 0 .. T - 1, so that nothing needs gathering (plain decode); else kept is
    what layers.batch.KEPT_ROWS asks for them. every_pending: that, and all tokens are PENDING. draw_lens: the length of
    the sequence that each draws for, int32. paged: which entries of the slots' page tables, numbered over all of them,
    are others than before, and what they are now; where every_row, but for what DecodeRows says. adapters: [T] int32,
    the adapter of each row, where any has one (see layers.lora). ahead: drafts.ahead_of, where there are drafts. own:
    of those whose rotation has no table (layers.rope.Regimes), and own_rows, int64, where in the tables' values it is
    to be written. num_pages: the width of the batch's page table. arrays: what the batch's other tensors share their
    memory with, by name.
    It holds until the next build, which may write to the same tensors.
    """

    batch: Batch
    arrays: dict[str, NDArray[np.int32]]
    seq_slots: NDArray[np.int64]
    draw_slots: list[int]
    draw_rows: torch.Tensor
    draw_lens: NDArray[np.int32]
    every_row: bool
    every_pending: bool
    num_pages: int
    paged: Paged | None
    ahead: list[list[int]] | None = None
    kept: tuple[torch.Tensor, ...] = ()
    adapters: torch.Tensor | None = None
    own: Sequence[OwnRows] = ()
    own_rows: torch.Tensor | None = None


class _Columns(NamedTuple):
    """Of sequences: slots, positions of their first tokens, numbers of tokens, these, one sequence's after the other;
    who draws, and how many of them for each sequence."""

    slots: NDArray[np.int64]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    draw_slots: list[int]
    draws: NDArray[np.int32]

    @classmethod
    def of(cls, seqs: Sequence[SeqStep]) -> _Columns:
        tokens, samplers = [seq.tokens for seq in seqs], [seq.samplers * (1 + seq.drafts) for seq in seqs]
        return cls(
            np.array([seq.slot for seq in seqs], np.int64),
            np.array([seq.start for seq in seqs], np.int32),
            np.array(list(map(len, tokens)), np.int32),
            np.array(list(chain.from_iterable(tokens)), np.int32),
            list(chain.from_iterable(samplers)),
            np.array(list(map(len, samplers)), np.int32),
        )

    def __add__(self, others: _Columns) -> _Columns:  # type: ignore[override]
        """These, then others."""
        return _Columns(
            np.concatenate((self.slots, others.slots)),
            np.concatenate((self.starts, others.starts)),
            np.concatenate((self.lengths, others.lengths)),
            np.concatenate((self.token_ids, others.token_ids)),
            self.draw_slots + others.draw_slots,
            np.concatenate((self.draws, others.draws)),
        )


@dataclass
class _Decode:
    """The batch of a plan's steps, so many times further (plan.Again), of which the next may be one more."""

    steps: list[SeqStep]
    further: int
    moving: NDArray[np.int32]  # of all that DecodeRows has, these sequences' part
    longest: int
    token_ids: NDArray[np.int32]
    built: BuiltBatch


class BatchBuilder:
    """Keeps each slot's page table between steps, so that a step brings only what is new in it.

    The table is int32 [max_num_seqs, ceil(max_model_len / page_size)]. Rows of ended slots are left as they are: a new
    sequence overwrites what it can reach. regimes: the model's.
    """

    def __init__(
        self,
        kv: list[tuple[torch.Tensor, torch.Tensor]],
        *,
        page_size: int,
        max_num_seqs: int,
        max_model_len: int,
        regimes: Regimes | None = None,
    ) -> None:
        self._kv = kv
        self._first_rows = {} if regimes is None else regimes.first_rows
        self._rows_of_own = 0 if regimes is None else len(regimes.lengths) * regimes.rows
        self._page_size = page_size
        self._table = np.zeros((max_num_seqs, -(-max_model_len // page_size)), np.int32)
        self._entries = self._table.reshape(-1)
        self._last: _Decode | None = None
        self._adapters = np.full(max_num_seqs, -1, np.int32)  # of each slot
        self._count = np.arange(max_num_seqs + 1, dtype=np.int32)
        self.rows = DecodeRows(max_num_seqs, self._table.shape[1])

    def start(self, slot: int, adapter: int) -> None:
        """A sequence takes the slot. Idempotent."""
        self._adapters[slot] = adapter
        self._last = None  # another regime or adapter, perhaps, at the place where the one before would go on

    def build(self, steps: list[SeqStep], again: Again | None = None, more: Sequence[SeqStep] = ()) -> BuiltBatch:
        """Applies the sequences' page table changes and lays out their tokens, as Plan tells of them. Idempotent; steps
        is not empty."""
        if again is None:
            return self._build(steps, [*steps, *more])
        last = self._last
        if more and self._first_rows:
            return self._build(steps, [*again.of(steps), *more])
        if last is not None and last.steps is steps and last.further == again.further - 1:
            built = self._advance(last, again)
        else:
            built = self._build(steps, again.of(steps), again.further)
        return self._beside(built, more) if more else built

    def _build(self, steps: list[SeqStep], seqs: list[SeqStep], further: int = 0) -> BuiltBatch:
        """steps: those that seqs are so many times further; anything, where there is more than to decode."""
        self._last = None
        paged = self._store_pages([(seq.slot, seq.page_offset, seq.pages) for seq in seqs if seq.pages])
        columns = _Columns.of(seqs)
        built = self._assemble(columns, paged, seqs)
        if built.every_row and not built.own:
            moving = self.rows.moving[:, : len(seqs)]
            self._last = _Decode(steps, further, moving, int(built.draw_lens.max()), columns.token_ids, built)
        return built

    def _beside(self, decodes: BuiltBatch, more: Sequence[SeqStep]) -> BuiltBatch:
        """What goes on as `rows` has it, and more."""
        rows, count = self.rows, self.rows.count
        paged = rows.entries[:count], rows.pages[:count]
        for others in (decodes.paged, self._store_pages([(seq.slot, seq.page_offset, seq.pages) for seq in more])):
            if others is not None:
                paged = np.concatenate((paged[0], others[0])), np.concatenate((paged[1], others[1]))
        one, lengths = np.ones(count, np.int32), rows.moving[2, :count]
        token_ids = decodes.arrays["token_ids"]
        first = _Columns(rows.seq_slots[:count], lengths - 1, one, token_ids, decodes.draw_slots, one)
        built = self._assemble(first + _Columns.of(more), paged)
        if built.every_row:  # theirs is a token too: now `rows` has all of them
            self._last = None
        return built

    def _assemble(self, columns: _Columns, paged: Paged | None, seqs: Sequence[SeqStep] = ()) -> BuiltBatch:
        """seqs: what the columns are of; may be left out where none has drafts and there are no regimes."""
        slots, starts, lengths, token_ids, draw_slots, draws = columns
        num_seqs, num_tokens = len(slots), len(token_ids)
        seq_lens = starts + lengths
        if num_tokens == num_seqs:  # every sequence brings one token: nothing to spread
            query_start = self._count[: num_seqs + 1]
            positions, table_rows = starts, slots
        else:
            query_start = np.zeros(num_seqs + 1, np.int32)
            np.cumsum(lengths, out=query_start[1:])
            positions = np.arange(num_tokens, dtype=np.int32)
            positions += np.repeat(starts - query_start[:-1], lengths)
            table_rows = np.repeat(slots, lengths)
        pages, offsets = np.divmod(positions, np.int32(self._page_size))
        cache_slots = self._table[table_rows, pages] * np.int32(self._page_size) + offsets
        own: list[OwnRows] = []
        if self._first_rows:
            shifts = self._shifts(seqs, query_start, own)
            positions = positions + (shifts if num_tokens == num_seqs else np.repeat(shifts, lengths))
        num_pages = self._num_pages(int(seq_lens.max()))
        drafted = any(seq.drafts for seq in seqs)
        every_row = len(draw_slots) == num_seqs == num_tokens and bool(draws.all())
        if every_row:
            positions, cache_slots, seq_lens = self._lay_out(slots, positions, cache_slots, seq_lens)
            drawn_by, draw_rows, draw_lens = None, self._count[:num_seqs].copy(), seq_lens
        else:
            drawn_by = np.repeat(self._count[:num_seqs], draws)
            draw_rows, draw_lens = query_start[drawn_by + 1] - 1, seq_lens[drawn_by]
            if drafted:
                back = np.concatenate(
                    [np.arange(seq.drafts, -1, -1) if seq.drafts else np.zeros(len(seq.samplers), int) for seq in seqs]
                ).astype(np.int32)
                draw_rows -= back
                draw_lens -= back
        arrays = {
            "token_ids": token_ids,
            "positions": positions,
            "slots": cache_slots,
            "query_start": query_start,
            "seq_lens": seq_lens,
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        batch = Batch(**tensors, page_table=self._page_table(slots, num_pages), kv=self._kv)
        ahead = ahead_of(seqs) if drafted else None
        every_pending = every_row and int(token_ids.max()) == PENDING
        drawing = draw_slots, torch.from_numpy(draw_rows), draw_lens, every_row, every_pending
        built = BuiltBatch(batch, arrays, slots, *drawing, num_pages, paged, ahead)
        adapters = self._adapters[table_rows]
        if adapters.max(initial=-1) >= 0:
            built.adapters = torch.from_numpy(adapters)
        if own:
            built.own = own
            built.own_rows = torch.from_numpy(positions[positions >= self._rows_of_own].astype(np.int64))
        if drawn_by is not None:
            built.kept = self._kept(built, torch.from_numpy(drawn_by))
        return built

    def _lay_out(
        self,
        slots: NDArray[np.int64],
        positions: NDArray[np.int32],
        cache_slots: NDArray[np.int32],
        seq_lens: NDArray[np.int32],
    ) -> NDArray[np.int32]:
        """A decode step, as `rows` tells it; returns the last three, as parts of it."""
        rows, count = self.rows, len(slots)
        rows.begin(count)
        moving = rows.moving[:3, :count]
        moving[:] = positions, cache_slots, seq_lens
        rows.seq_slots[:count], rows.adapters[:count] = slots, self._adapters[slots]
        rows.entries[:count] = slots * self._table.shape[1] + (seq_lens - 1) // self._page_size
        rows.pages[:count] = cache_slots // self._page_size
        return moving

    def _shifts(self, seqs: Sequence[SeqStep], query_start: NDArray[np.int32], own: list[OwnRows]) -> NDArray[np.int32]:
        """From a sequence's positions to rows of the rotation tables; `own` takes those of who has none."""
        shifts = np.empty(len(seqs), np.int32)
        for i, (seq, row) in enumerate(zip(seqs, query_start.tolist(), strict=False)):
            first = self._first_rows.get(seq.regime)
            if first is None:
                first = self._rows_of_own + row - seq.start
                own.append(OwnRows(row, seq.regime, seq.start, seq.start + len(seq.tokens)))
            shifts[i] = first
        return shifts

    @staticmethod
    def _kept(built: BuiltBatch, drawn_by: torch.Tensor) -> tuple[torch.Tensor, ...]:
        starts_of_one = torch.arange(len(drawn_by) + 1, dtype=torch.int32)
        return built.draw_rows, starts_of_one, torch.from_numpy(built.draw_lens), built.batch.page_table[drawn_by]

    def _page_table(self, slots: NDArray[np.int64], num_pages: int) -> torch.Tensor:
        return torch.from_numpy(self._table[slots, :num_pages])

    def _advance(self, last: _Decode, again: Again) -> BuiltBatch:
        """Turn the last batch into the next one."""
        built, rows, moving, size = last.built, self.rows, last.moving, self._page_size
        moving += 1
        last.longest += 1
        last.further += 1
        if again.tokens:
            last.token_ids[:] = again.tokens
        elif not built.every_pending:
            last.token_ids.fill(PENDING)
        built.every_pending = not again.tokens
        built.paged, width = None, self._table.shape[1]
        for place, first, pages in again.paged:  # they enter a page, or theirs is another now
            slot = built.draw_slots[place]
            if len(pages) > 1 or first >= width:
                built.paged = self._store_pages([(slot, first, pages)], built.paged)
            page, offset = divmod(moving.item(2, place) - 1, size)
            rows.entries[place] = entry = slot * width + page
            rows.pages[place] = self._entries[entry] = found = pages[page - first]
            moving[1, place] = found * size + offset
        num_pages = self._num_pages(last.longest)
        if again.paged or num_pages != built.num_pages:
            built.num_pages = num_pages
            built.batch.page_table = self._page_table(rows.seq_slots[: rows.count], num_pages)
        return built

    def _store_pages(self, paged: list[tuple[int, int, list[int]]], others: Paged | None = None) -> Paged | None:
        """paged: (slot, page_offset, pages). Returns what changed, and `others`. Raises IndexError beyond
        max_model_len."""
        places: list[int] = []
        pages: list[int] = []
        width = self._table.shape[1]
        for slot, offset, new in paged:
            if offset + len(new) > width:
                raise IndexError(f"slot {slot}: {offset + len(new)} pages, of {width} that a sequence can have")
            first = slot * width + offset
            places += range(first, first + len(new))
            pages += new
        if not pages:
            return None
        entries, values = np.array(places, np.int64), np.array(pages, np.int32)
        self._entries[entries] = values
        if others is None:
            return entries, values
        return np.concatenate((others[0], entries)), np.concatenate((others[1], values))

    def _num_pages(self, longest: int) -> int:
        return (longest - 1) // self._page_size + 1
