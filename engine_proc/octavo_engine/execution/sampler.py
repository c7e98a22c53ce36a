"""Draws the tokens of a step: each slot's sampling parameters kept as rows of arrays, gathered by index.

The random numbers of Ops.sample are counter-based, keyed by (seed, position); position is the index of the drawn token
in its sequence's output. So a request draws the same tokens in any batch, and after it was preempted and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.options import Structured
from octavo.wire import TokenLogprob
from octavo_engine.execution.adjustments import Adjustments
from octavo_engine.execution.constraint import Constraint
from octavo_engine.execution.processors import Processors
from octavo_engine.ops import Ops
from octavo_engine.scheduling.plan import SeqStart
from octavo_engine.structured import GrammarFailed, Matcher

__all__ = ["NothingAllowed", "Sampler", "asked_logprobs", "logprob_entries", "nothing_allowed", "token_logprobs"]

_NO_IDS = torch.zeros(0, dtype=torch.int32)
_NO_VALUES = torch.zeros(0, dtype=torch.float32)
_Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
_Parameters = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class _Rows:
    """What Ops.sample takes of some slots, kept while the same ones draw: a decoding batch seldom changes."""

    slots: list[int]
    index: NDArray[np.intp]
    positions: NDArray[np.int32]
    parameters: _Parameters  # temperature, top_k, top_p, min_p, seeds, positions
    entries: _Entries | None  # None: they grow with the output
    mask: tuple[torch.Tensor | None, torch.Tensor | None]


class NothingAllowed(Exception):
    """A sequence's parameters leave no token to draw, or its logits are NaN."""


def nothing_allowed(slot: int) -> NothingAllowed:
    return NothingAllowed(
        f"no token can be drawn for the sequence in slot {slot}: allowed_token_ids, logit_bias, bad_words, structured "
        "and min_tokens together forbid every token, or the model's logits are NaN"
    )


class Sampler:
    """`start` and `end` mark a slot's use; `draw` changes nothing, `commit` tells what was drawn.

    A step that fails between the two can therefore be run again.
    """

    def __init__(self, ops: Ops, *, max_num_seqs: int, vocab_size: int, processors: Processors | None = None) -> None:
        self._ops = ops
        self._processors = Processors({}) if processors is None else processors
        self._vocab_size = vocab_size
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int32)
        self._top_p = np.ones(max_num_seqs, np.float32)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seed = np.zeros(max_num_seqs, np.int64)
        self._position = np.zeros(max_num_seqs, np.int32)
        # What few sequences ask for lies in dicts by slot: an empty dict costs the others nothing.
        self._adjustments: dict[int, Adjustments] = {}
        self._logprobs: dict[int, int] = {}
        self._masked: set[int] = set()
        self._mask_row = np.full(max_num_seqs, -1, np.int32)
        self._masks: NDArray[np.int32] | None = None  # [max_num_seqs, ceil(V / 32)] bit sets, see Ops.sample
        self.matcher_of: Callable[[Structured], Matcher] | None = None
        self.broken: dict[int, GrammarFailed] = {}  # by slot, of the last commit
        self._constraints: dict[int, Constraint] = {}
        self._rows: _Rows | None = None
        self._no_entries = torch.zeros(max_num_seqs + 1, dtype=torch.int32)

    def start(self, start: SeqStart) -> None:
        """Take over a sequence, fresh or resumed (its output is in `start`). Idempotent."""
        slot, params = start.slot, start.params
        self.end(slot)
        self._temperature[slot] = params.temperature
        self._top_k[slot] = min(params.top_k, self._vocab_size)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seed[slot] = start.seed
        self._position[slot] = len(start.output)
        if params.logprobs is not None:
            self._logprobs[slot] = params.logprobs
        if params.allowed_token_ids is not None:
            self._allow(slot, params.allowed_token_ids)
        self._processors.start(start)
        if Adjustments.needed(start):
            self._adjustments[slot] = Adjustments(start)
        if params.structured is not None:
            self._constrain(start, params.structured)

    def end(self, slot: int) -> None:
        """The slot is free. Idempotent."""
        self._rows = None
        self._adjustments.pop(slot, None)
        self._processors.end(slot)
        self._logprobs.pop(slot, None)
        self._constraints.pop(slot, None)
        if slot in self._masked:
            self._masked.remove(slot)
            self._mask_row[slot] = -1

    def draw(
        self, logits: torch.Tensor, slots: list[int], ahead: list[list[int]] | None = None
    ) -> tuple[list[int], list[TokenLogprob | None]]:
        """One token and, where asked for, its logprobs for each slot. logits [R, V] float32, R = len(slots).

        Raises NothingAllowed with the slot, ProcessorFailed. Slots are distinct: a sequence draws one token a step; but
        where `ahead` says which tokens come before a row's, behind what is committed. A row without any is -1 then (see
        drafts.reject).
        """
        rows = self._rows
        if ahead is not None:
            rows = self._gather(slots)
            rows.positions += np.array(list(map(len, ahead)), np.int32)
            rows.entries = self._entries(slots, ahead)
        elif rows is None or rows.slots != slots:
            rows = self._rows = self._gather(slots)
        entries = self._entries(slots) if rows.entries is None else rows.entries
        processed = logits
        if self._processors.asked:
            processed = self._processors.apply(logits, self._processors.rows(slots), keep=bool(self._logprobs))
        drawn = self._ops.sample(processed, *rows.parameters, *entries, *rows.mask)
        tokens: list[int] = drawn.tolist()
        if min(tokens) < 0 and ahead is None:
            raise nothing_allowed(slots[tokens.index(min(tokens))])
        if not self._logprobs:
            return tokens, [None] * len(slots)
        return tokens, asked_logprobs(self._ops, logits, drawn, [self._logprobs.get(slot) for slot in slots])

    def commit(self, slots: list[int], tokens: list[int]) -> None:
        """The step went through: what was drawn is output now."""
        rows = self._rows
        if rows is not None and rows.slots == slots:
            rows.positions += 1
            self._position[rows.index] = rows.positions
        else:
            np.add.at(self._position, np.array(slots, np.intp), 1)  # a slot may stand there several times
            self._rows = None
        self._push(slots, tokens)

    def _push(self, slots: list[int], tokens: list[int]) -> None:
        if self._processors.asked:
            self._processors.commit(slots, tokens)
        if self._adjustments:
            for slot, token in zip(slots, tokens, strict=True):
                adjustments = self._adjustments.get(slot)
                if adjustments is not None:
                    adjustments.push(token)
        self.broken = {}
        if self._constraints:
            for slot, token in zip(slots, tokens, strict=True):
                constraint = self._constraints.get(slot)
                if constraint is not None:
                    self._go_on(slot, constraint, token)

    def _go_on(self, slot: int, constraint: Constraint, token: int) -> None:
        try:
            constraint.push(token)
        except GrammarFailed as error:
            self.broken[slot] = error
        else:
            self._mind_the_end(slot, constraint)

    def _mind_the_end(self, slot: int, constraint: Constraint) -> None:
        if constraint.only_ends and slot in self._adjustments:
            self._adjustments[slot].allow_ends()

    def _constrain(self, start: SeqStart, structured: Structured) -> None:
        """The mask's row is right from here on, at every draw: who pushes a token fills it for the next.

        It allows nothing where a grammar fails that had not before: the draw then tells whose fault it is.
        """
        assert self.matcher_of is not None
        slot, matcher = start.slot, self.matcher_of(structured)
        row = self._mask_of(slot)
        allowed = None
        if start.params.allowed_token_ids is not None:  # what ends the output is allowed besides
            allowed = self._bits((*start.params.allowed_token_ids, *start.eos_ids))
        try:
            constraint = Constraint(matcher, row, allowed, frozenset(start.eos_ids), start.output)
        except GrammarFailed:
            row[:] = 0
            return
        self._constraints[slot] = constraint
        self._mind_the_end(slot, constraint)

    def _gather(self, slots: list[int]) -> _Rows:
        index = np.array(slots, np.intp)
        positions = self._position[index]
        mask = mask_rows = None
        if self._masks is not None and self._masked:
            mask, mask_rows = torch.from_numpy(self._masks), torch.from_numpy(self._mask_row[index])
        parameters = (
            torch.from_numpy(self._temperature[index]),
            torch.from_numpy(self._top_k[index]),
            torch.from_numpy(self._top_p[index]),
            torch.from_numpy(self._min_p[index]),
            torch.from_numpy(self._seed[index]),
            torch.from_numpy(positions),
        )
        entries = None if self._adjustments else self._entries(slots)
        return _Rows(slots.copy(), index, positions, parameters, entries, (mask, mask_rows))

    def _entries(self, slots: list[int], ahead: list[list[int]] | None = None) -> _Entries:
        """adjust_start, adjust_ids, adjust_scale, adjust_add of Ops.sample."""
        found = [self._adjustments.get(slot) for slot in slots] if self._adjustments else ()
        if ahead is not None:
            found = [
                a.after(tokens) if a is not None and tokens else a for a, tokens in zip(found, ahead, strict=False)
            ]
        some = [a for a in found if a is not None]
        if not some and len(slots) >= len(self._no_entries):
            return torch.zeros(len(slots) + 1, dtype=torch.int32), _NO_IDS, _NO_VALUES, _NO_VALUES
        if not some:
            return self._no_entries[: len(slots) + 1], _NO_IDS, _NO_VALUES, _NO_VALUES
        start = np.zeros(len(slots) + 1, np.int32)
        np.cumsum([0 if a is None else a.size for a in found], out=start[1:])
        return (
            torch.from_numpy(start),
            torch.from_numpy(np.concatenate([a.ids[: a.size] for a in some])),
            torch.from_numpy(np.concatenate([a.scale[: a.size] for a in some])),
            torch.from_numpy(np.concatenate([a.add[: a.size] for a in some])),
        )

    def _allow(self, slot: int, token_ids: Sequence[int]) -> None:
        self._mask_of(slot)[:] = self._bits(token_ids)

    def _mask_of(self, slot: int) -> NDArray[np.int32]:
        """The slot's row of masks, in use from now on."""
        if self._masks is None:
            self._masks = np.zeros((len(self._mask_row), -(-self._vocab_size // 32)), np.int32)
        self._mask_row[slot] = slot
        self._masked.add(slot)
        row: NDArray[np.int32] = self._masks[slot]
        return row

    def _bits(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        """Raises IndexError beyond the vocabulary, before anything native sees the id."""
        bits = np.zeros(-(-self._vocab_size // 32) * 32, np.uint8)
        bits[: self._vocab_size][list(token_ids)] = 1
        packed: NDArray[np.int32] = np.packbits(bits, bitorder="little").view("<i4")
        return packed


def asked_logprobs(
    ops: Ops, logits: torch.Tensor, drawn: torch.Tensor, tops: list[int | None]
) -> list[TokenLogprob | None]:
    """token_logprobs of the rows that ask for them: tops is None where one does not."""
    asked = [(i, top) for i, top in enumerate(tops) if top is not None]
    logprobs: list[TokenLogprob | None] = [None] * len(tops)
    if asked:
        index = torch.tensor([i for i, _ in asked])
        found = token_logprobs(
            ops,
            logits if len(asked) == len(tops) else logits.index_select(0, index),
            drawn.index_select(0, index).clamp(min=0),
            [top for _, top in asked],
        )
        for (i, _), entry in zip(asked, found, strict=True):
            logprobs[i] = entry
    return logprobs


def token_logprobs(ops: Ops, logits: torch.Tensor, tokens: torch.Tensor, tops: list[int]) -> list[TokenLogprob]:
    """Entries of one row each with its own number of best tokens. logits [R, V], tokens [R] int32, tops of length R."""
    return logprob_entries((tokens, *ops.logprobs(logits, tokens, min(max(tops), logits.shape[1]))), tops)


def logprob_entries(found: Sequence[torch.Tensor], tops: list[int]) -> list[TokenLogprob]:
    """found, on the host: tokens, and what Ops.logprobs gives for them."""
    tokens, values, ranks, top_ids, top_values = found
    return [
        TokenLogprob(token, value, rank, tuple(zip(ids[:top], best[:top], strict=True)))
        for token, value, rank, ids, best, top in zip(
            tokens.tolist(),
            values.tolist(),
            ranks.tolist(),
            top_ids.tolist(),
            top_values.tolist(),
            tops,
            strict=True,
        )
    ]
