"""Runner for a device that works by itself: submit enqueues a step and returns, collect waits for its tokens.

A step draws on the device and leaves each slot's last token there, so that the next step, which feeds on it, can be
submitted before the host has seen it (plan.PENDING). The page tables live on the device too; a step brings what is new
in them, and all its other small arrays, in one copy out of pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.wire import TokenLogprob
from octavo_engine.execution.batch import BatchBuilder, BuiltBatch
from octavo_engine.execution.device import Queue, TypedErrors, open_queue
from octavo_engine.execution.device_sampler import DeviceSampler, Draw, Fetched
from octavo_engine.execution.device_step import DeviceStep, Rows, Work
from octavo_engine.execution.drafts import reject, standing
from octavo_engine.execution.runner import Runner, StepResult, independent_copies
from octavo_engine.execution.staging import Arrays, Packer
from octavo_engine.ops import Ops, TensorSpec
from octavo_engine.scheduling.plan import PENDING, Plan, SeqStep

if TYPE_CHECKING:
    from octavo_engine.models.base import CausalLM

__all__ = ["DeviceRunner"]

_NOTHING = torch.empty((0, 0), dtype=torch.int32)


class _Builder(BatchBuilder):
    """The page table of a batch is gathered on the device."""

    @staticmethod
    def _kept(built: BuiltBatch, drawn_by: Tensor) -> tuple[Tensor, ...]:
        return (drawn_by,)

    def _page_table(self, slots: NDArray[np.intp], num_pages: int) -> Tensor:
        return _NOTHING


class DeviceRunner(Runner):
    """Steps run in the order of submit, so a page can be given to another sequence while steps that wrote it are still
    to run. Up to two may be in flight; a step that failed can be submitted again once later ones were discarded.

    Raises OutOfMemory, and DeviceLost for anything that leaves the device dead, from submit as from collect.
    """

    asynchronous = True
    _builder_class = _Builder
    _sampler: DeviceSampler

    def __init__(self, model: CausalLM, ops: Ops, *, queue: Queue | None = None, **sizes: Any) -> None:
        """sizes: as Runner takes them."""
        self._decodes: list[Callable[..., Tensor]] = []  # without adapters, with
        super().__init__(model, ops, **sizes)
        slots, width = sizes["max_num_seqs"], -(-sizes["max_model_len"] // sizes["page_size"])
        self.queue = queue or open_queue(ops.device)
        self._packer = Packer(ops.device)
        self._tables = torch.zeros((slots, width), dtype=torch.int32, device=ops.device)
        self._entries = self._tables.view(-1)
        self._last = torch.zeros(slots, dtype=torch.int32, device=ops.device)
        self._drawn: tuple[Tensor, Tensor] | None = None  # slots and tokens that are still to go to `_last`
        self._count = torch.arange(slots + 1, dtype=torch.int32, device=ops.device)
        self._no_rows = self._count[:0], self._count[:1], self._count[:0]
        self._rows: Rows | None = None
        self._inference = torch.inference_mode()

    def _record_decode(self, decode: Callable[..., Tensor], specs: Sequence[TensorSpec], hints: dict[str, Any]) -> None:
        self._decodes.append(self._ops.record(decode, specs, **hints))

    @staticmethod
    def _logit_rows(vocab_size: int, max_num_seqs: int) -> int:
        return max_num_seqs

    def _make_sampler(self, max_num_seqs: int, vocab_size: int) -> DeviceSampler:
        return DeviceSampler(self._ops, max_num_seqs=max_num_seqs, vocab_size=vocab_size, processors=self._processors)

    # ---- the host ----------------------------------------------------------------------------------------------

    def submit(self, plan: Plan) -> DeviceStep:  # type: ignore[override]
        """Enqueue a step: the next one, or one whose successors were discarded, whole or in part.

        Tokens may be PENDING where the step before this one was submitted and draws them.
        """
        step = DeviceStep(plan)
        for slot in plan.ends:
            self._sampler.end(slot)
            self._pooler.end(slot)
        for start in plan.starts:
            self._sampler.start(start)
            self._builder.start(start.slot, start.adapter)
        with self._inference, TypedErrors(self.queue, step):
            step.done = self.queue.enqueue(partial(self._run, self._prepare(plan, step)))
        self._copied = max(self._copied, plan.step)
        return step

    def collect(self, step: DeviceStep) -> StepResult:  # type: ignore[override]
        """Wait for the oldest step and return what it made. Raises also what the sampler raises."""
        self._wait(step)
        tokens: list[int] = [] if step.tokens is None else step.tokens.tolist()
        logprobs: list[TokenLogprob | None] = [None] * len(tokens)
        if step.logprobs is not None:
            for place, entry in zip(step.asked, step.logprobs.entries(), strict=True):
                logprobs[place] = entry
        if step.held is not None:
            assert step.held_logits is not None
            drawn, entries = self._sampler.draw_held(step.held, step.held_logits)
            for i, place in enumerate(step.held.places):
                tokens[place], logprobs[place] = drawn[i], entries[i]
        if step.drafted:
            tokens, logprobs = reject(step.plan.steps, tokens, logprobs)
            self._sampler.commit(*standing(step.slots, tokens))
        else:
            self._sampler.commit(step.slots, tokens)
        prompt_logprobs: dict[int, list[TokenLogprob]] = {slot: [] for slot in step.read}
        for slot, chunk in step.prompt_logprobs:
            prompt_logprobs[slot].extend(chunk.entries())
        vectors = {} if step.pooled is None else self._pooler.add(step.plan.steps, step.pooled)
        return StepResult(tokens, logprobs, prompt_logprobs, vectors, self._sampler.broken)

    def discard(self, step: DeviceStep) -> None:  # type: ignore[override]
        """Wait for a step whose results nobody wants, errors included; only DeviceLost is raised."""
        try:
            self._wait(step)
        except Exception:
            self.queue.check()

    def _wait(self, step: DeviceStep) -> None:
        assert step.done is not None
        with TypedErrors(self.queue, step):
            step.done.wait()

    def _prepare(self, plan: Plan, step: DeviceStep) -> Work:
        """All that has to be known of the host's state, so that it may go on changing."""
        # A second run of a step might copy what the first has written since.
        copies = list(independent_copies(plan.copies)) if plan.copies and plan.step > self._copied else []
        work = Work(step, list(map(len, copies)))
        arrays: Arrays = {}
        if copies:
            pairs = np.array(list(chain.from_iterable(copies)), np.int32)
            arrays["copy_src"], arrays["copy_dst"] = pairs.T.copy()
        seqs = plan.steps  # what is read of them below is the same in each of the steps that go on
        if not seqs:
            if arrays:
                work.sent = self._packer.send(arrays)
            return work
        built = self._build(plan)
        step.slots, step.drafted = built.draw_slots, built.ahead is not None
        arrays |= self._batch_arrays(seqs, built, work)
        arrays |= self._sampler.masks(step.slots)
        if step.slots:
            if built.moving is None:
                arrays["draw_rows"], arrays["drawn_by"] = built.draw_rows.numpy(), built.kept[0].numpy()
                arrays["draw_lens"] = built.draw_lens
                arrays["draw_positions"] = self._sampler.positions(step.slots, built.draw_lens)
            arrays |= self._sampler.arrays(step.slots, built.ahead)
            step.held = self._sampler.held(step.slots, built.draw_lens)
            if step.held is not None:
                arrays["held"] = np.array(step.held.places, np.int32)
            step.asked, work.tops = self._sampler.asked(step.slots, step.held)
            if step.asked:
                arrays["asked"] = np.array(step.asked, np.int32)
        if plan.again is None:
            step.read = [seq.slot for seq in seqs if seq.prompt_logprobs >= 0]
        if built.moving is None:  # else nobody reads a prompt
            if step.read:
                arrays["targets"] = np.array(self._prompt_targets(seqs, work), np.int32)
            if pooled := self._pooler.rows(seqs):
                arrays["pooled_rows"] = np.array(pooled, np.int32)
        sent = work.sent = self._packer.send(arrays, len(seqs))
        if step.slots:
            work.draw = self._sampler.prepare(step.slots, work.sent)
        kept, num_pages = self._rows, built.num_pages
        if "seq_slots" in sent:
            query_start = sent["query_start"] if "query_start" in sent else self._count[: len(seqs) + 1]
            self._rows = Rows(built, sent["seq_slots"], query_start, self._tables[:, :num_pages])
        elif kept is not None and kept.columns.shape[1] != num_pages:
            self._rows = Rows(built, kept.slots, kept.query_start, self._tables[:, :num_pages])
        elif kept is not None and "table_places" in sent:
            self._rows = Rows(built, kept.slots, kept.query_start, kept.columns)
        work.rows = self._rows
        return work

    def _batch_arrays(self, seqs: list[SeqStep], built: BuiltBatch, work: Work) -> Arrays:
        arrays: Arrays = {}
        if built.paged is not None:
            arrays["table_places"], arrays["table_pages"] = built.paged
        fresh = self._rows is None or self._rows.built is not built
        if fresh:
            arrays["seq_slots"] = np.array([seq.slot for seq in seqs], np.int32)
        if built.moving is not None:
            if fresh:
                built.moving[3, : len(seqs)] = self._sampler.positions(built.draw_slots, built.draw_lens)
            arrays["positions slots seq_lens draw_positions"] = built.moving
        else:
            arrays |= {name: built.arrays[name] for name in ("positions", "slots", "seq_lens", "query_start")}
        if built.adapters is not None:
            arrays["adapters"] = built.adapters.numpy()
        if built.own_rows is not None:
            arrays["own_rows"] = built.own_rows.numpy()
            for i, table in enumerate(self._rotations):
                arrays[f"rotation {i}"] = table.own_rows(built.own).view(-1).numpy()
        token_ids = built.arrays["token_ids"]
        work.every_pending = built.every_pending
        if not work.every_pending:
            arrays["token_ids"] = token_ids
            pending = np.flatnonzero(token_ids == PENDING)
            if len(pending):
                of_seq = np.searchsorted(built.arrays["query_start"], pending, "right") - 1
                slots = np.array([seqs[i].slot for i in of_seq], np.int32)
                arrays |= {"pending_rows": pending, "pending_slots": slots}
        return arrays

    def _prompt_targets(self, seqs: list[SeqStep], work: Work) -> list[int]:
        """The tokens whose logprobs are wanted, one after the other, and in `work` which rows predict them."""
        targets: list[int] = []
        row = 0
        for seq in seqs:
            if seq.prompt_logprobs >= 0:
                wanted = seq.tokens[1:] if seq.next_token < 0 else [*seq.tokens[1:], seq.next_token]
                for begin in range(0, len(wanted), self._block):
                    count = min(self._block, len(wanted) - begin)
                    work.prompts.append((seq.slot, row + begin, len(targets) + begin, count, seq.prompt_logprobs))
                targets += wanted
            row += len(seq.tokens)
        return targets

    # ---- the device --------------------------------------------------------------------------------------------

    def _run(self, work: Work) -> None:
        sent = work.sent
        if work.copies:
            runs = zip(*(sent[name].split_with_sizes(work.copies) for name in ("copy_src", "copy_dst")), strict=True)
            for src, dst in runs:
                self._ops.copy_pages(self.cache.keys, self.cache.values, src, dst)
        rows = work.rows
        if rows is None:
            return
        self._sampler.write_masks(sent)
        if "table_places" in sent:
            self._entries.index_copy_(0, sent["table_places"], sent["table_pages"])
        if "own_rows" in sent:
            for i, table in enumerate(self._rotations):
                values = table.values
                values.index_copy_(0, sent["own_rows"], sent[f"rotation {i}"].view(-1, values.shape[1]))
        if rows.page_table is None:
            rows.page_table = rows.columns.index_select(0, rows.slots)
        batch = [
            self._token_ids(work), sent["positions"], sent["slots"], rows.query_start, sent["seq_lens"], rows.page_table
        ]  # fmt: skip
        adapters = sent.get("adapters")
        if adapters is not None:
            batch.append(adapters)
        hidden, logits = None, None
        if "query_start" not in sent:
            logits = self._decodes[adapters is not None](*batch)
        else:
            hidden, drawing = self._hidden(work, batch, rows.page_table, adapters)
            if work.draw is not None:
                logits = self._logits(drawing)
        if work.draw is not None:
            assert logits is not None
            self._sample(work, work.draw, logits)
        if hidden is not None:
            self._read(work, hidden)

    def _hidden(
        self, work: Work, batch: list[Tensor], page_table: Tensor, adapters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The forward's result, of all rows where some are read; and the rows of it that draw."""
        sent = work.sent
        forward, forward_kept = self._forward, self._forward_kept
        if adapters is not None:
            forward, forward_kept = self._forward_adapted, self._forward_adapted_kept
        if work.prompts or "pooled_rows" in sent:
            hidden = forward(*batch)
            return hidden, hidden.index_select(0, sent["draw_rows"]) if "draw_rows" in sent else hidden
        kept = [*self._no_rows, page_table[:0]]
        if work.draw is not None:
            by, count = sent["drawn_by"], len(work.step.slots) + 1
            one_each = self._count[:count]
            if count > len(self._count):  # there are drafts
                one_each = torch.arange(count, dtype=torch.int32, device=self._ops.device)
            kept = [sent["draw_rows"], one_each, sent["draw_lens"], page_table.index_select(0, by)]
        if adapters is not None:
            kept.append(adapters.index_select(0, kept[0]))
        hidden = forward_kept(*batch, *kept)
        return hidden, hidden

    def _sample(self, work: Work, draw: Draw, logits: Tensor) -> None:
        step, sent = work.step, work.sent
        if "held" in sent:
            step.held_logits = self.queue.fetch(logits.index_select(0, sent["held"]))
        drawn = self._sampler.sample(logits, draw)
        step.tokens = self.queue.fetch(drawn)
        tokens = drawn.clamp_(min=0)  # once they are fetched: -1, where nothing was drawn, is no id
        self._drawn = draw.slots, tokens
        if step.asked:
            if len(step.asked) < len(step.slots):
                logits, tokens = logits.index_select(0, sent["asked"]), tokens.index_select(0, sent["asked"])
            step.logprobs = self._logprobs(logits, tokens, work.tops)

    def _read(self, work: Work, hidden: Tensor) -> None:
        """What is asked of prompts."""
        step, sent = work.step, work.sent
        for slot, row, target, count, top in work.prompts:
            logits = self._logits(hidden[row : row + count])
            found = self._logprobs(logits, sent["targets"][target : target + count], [top] * count)
            step.prompt_logprobs.append((slot, found))
        if "pooled_rows" in sent:
            step.pooled = self.queue.fetch(self._pooler.hidden(hidden.index_select(0, sent["pooled_rows"])))

    def _token_ids(self, work: Work) -> Tensor:
        if self._drawn is not None:
            slots, tokens = self._drawn
            if work.every_pending and work.draw is not None and work.draw.slots is slots:
                return tokens  # the same sequences decode on
            self._last.index_copy_(0, slots, tokens)
            self._drawn = None
        sent = work.sent
        if work.every_pending:
            assert work.draw is not None
            return self._last.index_select(0, work.draw.slots)
        token_ids = sent["token_ids"]
        if "pending_rows" in sent:
            token_ids.index_copy_(0, sent["pending_rows"], self._last.index_select(0, sent["pending_slots"]))
        return token_ids

    def _logprobs(self, logits: Tensor, tokens: Tensor, tops: list[int]) -> Fetched:
        found = self._ops.logprobs(logits, tokens, min(max(tops), logits.shape[1]))
        return Fetched(tops, [self.queue.fetch(x) for x in (tokens, *found)])
