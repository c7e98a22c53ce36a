"""Runner for a device that works by itself: submit enqueues a step and returns, collect waits for its tokens.

A step draws on the device and leaves each slot's last token there, so that the next step, which feeds on it, can be
submitted before the host has seen it (plan.PENDING). The page tables live on the device too; a step brings what is new
in them, and all its other small arrays, in one copy out of pinned memory.

A step in which every sequence brings a token and draws one reads all that it takes from where it always lies: what the
host says of it (batch.DecodeRows), the tokens, the tables. So it is captured whole, but for the draw, and where the
same sequences go on the host's part is one copy there, the graph, the draw, and one copy back.
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
from octavo_engine.execution.device_step import DeviceStep, Work
from octavo_engine.execution.drafts import reject, standing
from octavo_engine.execution.runner import Capture, Runner, StepResult, independent_copies
from octavo_engine.execution.staging import Arrays, Fixed, Packer
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
    _sampler: DeviceSampler

    def __init__(self, model: CausalLM, ops: Ops, *, queue: Queue | None = None, **sizes: Any) -> None:
        """sizes: as Runner takes them."""
        slots, width, device = sizes["max_num_seqs"], -(-sizes["max_model_len"] // sizes["page_size"]), ops.device
        # By slot, and for one more, which none has.
        self._tables = torch.zeros((slots + 1, width), dtype=torch.int32, device=device)
        self._entries = self._tables.view(-1)
        self._last = torch.zeros(slots + 1, dtype=torch.int32, device=device)  # drawn; -1: nothing could be
        self._count = torch.arange(slots + 1, dtype=torch.int32, device=device)
        self._no_rows = self._count[:0], self._count[:1], self._count[:0]
        self._decodes: list[Callable[[int], Tensor]] = []  # logits of so many sequences; without adapters, with
        super().__init__(model, ops, **sizes)
        self.queue = queue or open_queue(device)
        self._packer = Packer(device)
        self._built: BuiltBatch | None = None  # of the last decode step
        self._drawing: Draw | None = None  # how the sequences of the last step draw
        self._inference = torch.inference_mode()

    def _make_builder(self, kv: list[tuple[Tensor, Tensor]], **sizes: Any) -> _Builder:
        builder = _Builder(kv, **sizes)
        self._fixed = Fixed(builder.rows.block, self._ops.device)
        self._decode_rows = builder.rows.of(self._fixed.there)
        return builder

    def _record_decode(self, decode: Callable[..., Tensor], specs: Sequence[TensorSpec], capture: Capture) -> None:
        adapted, run = bool(self._decodes), self._ops.record(decode, specs)
        self._decodes.append(capture(lambda rows: run(*self._decode_inputs(rows, adapted))))

    def _decode_inputs(self, count: int, adapted: bool) -> list[Tensor]:
        """What a decode step of the first `count` of self._decode_rows takes; captured with it."""
        rows = self._decode_rows
        slots = rows.seq_slots[:count]
        self._entries.index_copy_(0, rows.entries[:count], rows.pages[:count])
        token_ids, page_table = self._last.index_select(0, slots).clamp_(min=0), self._tables.index_select(0, slots)
        positions, cache_slots, seq_lens, _ = rows.moving[:, :count]
        batch = [token_ids, positions, cache_slots, self._count[: count + 1], seq_lens, page_table]
        return [*batch, rows.adapters[:count]] if adapted else batch

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
        vectors = {} if step.pooled is None else self._pooler.add(step.plan.kinds, step.pooled)
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
        if plan.steps:
            self._prepare_seqs(plan, step, work, arrays)
        elif arrays:
            work.sent = self._packer.send(arrays)
        return work

    def _prepare_seqs(self, plan: Plan, step: DeviceStep, work: Work, arrays: Arrays) -> None:
        seqs = plan.kinds
        built = self._build(plan)
        fresh, others = built is not self._built, plan.steps if plan.again is None else plan.more
        step.slots, step.drafted = built.draw_slots, built.ahead is not None
        work.num_seqs, work.num_pages, work.adapted = len(seqs), built.num_pages, built.adapters is not None
        if built.paged is not None:
            arrays["table_places"], arrays["table_pages"] = built.paged
        if built.own_rows is not None:
            arrays["own_rows"] = built.own_rows.numpy()
            for i, table in enumerate(self._rotations):
                arrays[f"rotation {i}"] = table.own_rows(built.own).view(-1).numpy()
        if not built.every_pending:
            arrays |= self._token_arrays(built)
        arrays |= self._sampler.masks(step.slots)
        if built.every_row:
            if fresh:
                rows = self._builder.rows
                rows.moving[3, : rows.count] = self._sampler.positions(step.slots, built.draw_lens)
            work.decode = self._fixed.stage()
        else:
            arrays |= self._row_arrays(built)
            if any(seq.prompt_logprobs >= 0 or seq.pooling for seq in others):
                arrays |= self._read_arrays(seqs, work)
        if step.slots:
            arrays |= self._sampler.arrays(step.slots, built.ahead)
            step.held = self._sampler.held(step.slots, built.draw_lens)
            if step.held is not None:
                arrays["held"] = np.array(step.held.places, np.int32)
            step.asked, work.tops = self._sampler.asked(step.slots, step.held)
            if step.asked:
                arrays["asked"] = np.array(step.asked, np.int32)
        step.read = [seq.slot for seq in others if seq.prompt_logprobs >= 0]
        if arrays:
            work.sent = self._packer.send(arrays)
        if step.slots and (arrays or fresh):
            positions = self._decode_rows.moving[3, : len(seqs)] if built.every_row else work.sent["draw_positions"]
            self._drawing = self._sampler.prepare(step.slots, work.sent, positions)
        work.draw = self._drawing if step.slots else None
        self._built = built if built.every_row else None

    def _row_arrays(self, built: BuiltBatch) -> Arrays:
        """Of a step that is more, or less, than to decode."""
        arrays: Arrays = {name: built.arrays[name] for name in ("positions", "slots", "seq_lens", "query_start")}
        arrays["seq_slots"] = built.seq_slots
        if built.adapters is not None:
            arrays["adapters"] = built.adapters.numpy()
        if built.draw_slots:
            arrays["draw_rows"], arrays["drawn_by"] = built.draw_rows.numpy(), built.kept[0].numpy()
            arrays["draw_lens"] = built.draw_lens
            arrays["draw_positions"] = self._sampler.positions(built.draw_slots, built.draw_lens)
        return arrays

    def _read_arrays(self, seqs: list[SeqStep], work: Work) -> Arrays:
        """Of prompts that something is asked of."""
        arrays: Arrays = {}
        if any(seq.prompt_logprobs >= 0 for seq in seqs):
            arrays["targets"] = np.array(self._prompt_targets(seqs, work), np.int32)
        if pooled := self._pooler.rows(seqs):
            arrays["pooled_rows"] = np.array(pooled, np.int32)
        return arrays

    @staticmethod
    def _token_arrays(built: BuiltBatch) -> Arrays:
        token_ids = built.arrays["token_ids"]
        arrays: Arrays = {"token_ids": token_ids}
        pending = np.flatnonzero(token_ids == PENDING)
        if len(pending):
            of_seq = np.searchsorted(built.arrays["query_start"], pending, "right") - 1
            arrays |= {"pending_rows": pending, "pending_slots": built.seq_slots[of_seq]}
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
        if sent:
            self._write(sent)
        if work.decode is not None:
            self._fixed.send(work.decode)
            assert work.draw is not None
            if "token_ids" in sent:
                self._last.index_copy_(0, work.draw.slots, self._token_ids(sent))
            self._sample(work, work.draw, self._decodes[work.adapted](work.num_seqs))
        elif work.num_seqs:
            hidden, drawing = self._hidden(work)
            if work.draw is not None:
                self._sample(work, work.draw, self._logits(drawing))
            self._read(work, hidden)

    def _write(self, sent: dict[str, Tensor]) -> None:
        """What is kept on the device."""
        self._sampler.write_masks(sent)
        if "table_places" in sent:
            self._entries.index_copy_(0, sent["table_places"], sent["table_pages"])
        if "own_rows" in sent:
            for i, table in enumerate(self._rotations):
                values = table.values
                values.index_copy_(0, sent["own_rows"], sent[f"rotation {i}"].view(-1, values.shape[1]))

    def _hidden(self, work: Work) -> tuple[Tensor, Tensor]:
        """The forward's result, of all rows where some are read; and the rows of it that draw."""
        sent = work.sent
        page_table = self._tables[:, : work.num_pages].index_select(0, sent["seq_slots"])
        batch = [self._token_ids(sent), *(sent[name] for name in ("positions", "slots", "query_start", "seq_lens"))]
        batch.append(page_table)
        adapters = sent.get("adapters")
        if adapters is not None:
            batch.append(adapters)
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
        self._last.index_copy_(0, draw.slots, drawn)
        if step.asked:
            tokens = drawn.clamp(min=0)  # -1, where nothing was drawn, is no id
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

    def _token_ids(self, sent: dict[str, Tensor]) -> Tensor:
        token_ids = sent["token_ids"]
        if "pending_rows" in sent:
            drawn = self._last.index_select(0, sent["pending_slots"]).clamp_(min=0)
            token_ids.index_copy_(0, sent["pending_rows"], drawn)
        return token_ids

    def _logprobs(self, logits: Tensor, tokens: Tensor, tops: list[int]) -> Fetched:
        found = self._ops.logprobs(logits, tokens, min(max(tops), logits.shape[1]))
        return Fetched(tops, [self.queue.fetch(x) for x in (tokens, *found)])
