"""Runs a Plan: page table, batch, forward, sampling. submit and collect are two calls so that on a device that works
by itself the next step can be scheduled meanwhile; on the CPU submit does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from octavo.wire import TokenLogprob
from octavo_engine.execution.batch import BatchBuilder, BuiltBatch
from octavo_engine.execution.drafts import reject, standing
from octavo_engine.execution.kv_cache import KVCache, cache_layout
from octavo_engine.execution.pooling import Pooler
from octavo_engine.execution.processors import Processors
from octavo_engine.execution.sampler import Sampler, token_logprobs
from octavo_engine.layers.batch import BATCH_SPECS, KEPT_ROWS, Batch
from octavo_engine.ops import KeptRows, Ops, Progress, TensorSpec
from octavo_engine.scheduling.plan import Plan, SeqStep

if TYPE_CHECKING:
    from octavo.options import Structured
    from octavo_engine.layers.lora import Adapters
    from octavo_engine.models.base import CausalLM
    from octavo_engine.structured import GrammarFailed, Matcher

__all__ = ["Capture", "Runner", "Step", "StepResult", "independent_copies"]

Capture = Callable[[Callable[[int], torch.Tensor]], Callable[[int], torch.Tensor]]

# Logits are made, used and dropped in blocks of about this many bytes. 256 rows over a vocabulary of 49,152 are 50 MB,
# which malloc takes from the system anew each step (12,289 page faults, measured); a block below 32 MB is reused.
_LOGIT_BLOCK_BYTES = 24 << 20


def _as_it_is(work: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    return work


@dataclass
class StepResult:
    """What a step made.

    tokens: flattened in the order of plan.seqs[i].samplers; logprobs alongside, None where not asked for.
    prompt_logprobs: by the slot of the SeqStep that asked, one entry a target token of this chunk. vectors: by the slot
    of the SeqStep that asked for pooling and completed it, [E] float32 on the host.
    broken: by slot, who can't go on behind the token drawn, and why.
    """

    tokens: list[int]
    logprobs: list[TokenLogprob | None]
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    vectors: dict[int, torch.Tensor] = field(default_factory=dict)
    broken: dict[int, GrammarFailed] = field(default_factory=dict)


@dataclass
class Step:
    """A submitted step, to be handed to Runner.collect."""

    number: int
    result: StepResult


def independent_copies(copies: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut page copies, meant one after the other, in runs whose copies may happen at the same time.

    A page given back and taken again within a plan can be the source of one copy and the destination of a later one.
    """
    run: list[tuple[int, int]] = []
    touched: set[int] = set()
    written: set[int] = set()
    for src, dst in copies:
        if src in written or dst in touched:
            yield run
            run, touched, written = [], set(), set()
        run.append((src, dst))
        touched |= {src, dst}
        written.add(dst)
    if run:
        yield run


class Runner:
    """Owns the KV cache and everything kept per slot.

    Running a plan again after it raised is harmless: nothing that a second run would count twice is changed before the
    step has succeeded. Plans are told apart by their step. Not thread-safe.
    """

    asynchronous = False

    def __init__(
        self,
        model: CausalLM,
        ops: Ops,
        *,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        max_model_len: int,
        kv_dtype: torch.dtype,
        progress: Progress | None = None,
        graphs: bool = True,
        adapters: Adapters | None = None,
        processors: Processors | None = None,
    ) -> None:
        """graphs: capture decode steps where the backend can. adapters: those of the model's layers."""
        config = model.config
        self._ops, self._processors = ops, processors
        self.cache = KVCache(ops, cache_layout(config, num_pages, page_size, kv_dtype))
        kv = self.cache.layers
        self._block = self._logit_rows(config.vocab_size, max_num_seqs)
        rows = TensorSpec(("L", config.hidden_size), torch.float32)

        def forward(*tensors: torch.Tensor) -> torch.Tensor:
            return model.forward(Batch.of(tensors, kv))

        self._builder = self._make_builder(
            kv,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            regimes=config.regimes,
        )
        capture = partial(ops.capture, most=max_num_seqs, progress=progress) if graphs else _as_it_is
        self._logits = ops.record(model.logits, [rows])
        self._forward, self._forward_kept = self._record(forward, BATCH_SPECS, KEPT_ROWS)
        self._record_decode(lambda *tensors: model.logits(forward(*tensors)), BATCH_SPECS, capture)
        if adapters is not None:
            self._record_adapted(model, kv, adapters, capture)
        self._rotations, self._page_size = model.tables, page_size
        self._sampler = self._make_sampler(max_num_seqs, config.vocab_size)
        self._pooler = Pooler(model)
        self._copied = -1  # the step whose copies are done

    def _record_adapted(
        self,
        model: CausalLM,
        kv: list[tuple[torch.Tensor, torch.Tensor]],
        adapters: Adapters,
        capture: Capture,
    ) -> None:
        """The forward once more for steps in which some row has an adapter: others are not slowed down by what it lets
        be fused."""

        def forward(*tensors: torch.Tensor) -> torch.Tensor:
            with adapters.of(tensors[-1]):
                return model.forward(Batch.of(tensors[:-1], kv))

        specs = (*BATCH_SPECS, TensorSpec(("T",), torch.int32))
        kept = KeptRows(KEPT_ROWS.writes, (*KEPT_ROWS.inputs, len(BATCH_SPECS)))
        self._forward_adapted, self._forward_adapted_kept = self._record(forward, specs, kept)
        self._record_decode(lambda *tensors: model.logits(forward(*tensors)), specs, capture)

    def _record(
        self, forward: Callable[..., torch.Tensor], specs: Sequence[TensorSpec], kept: KeptRows
    ) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
        """For every row, and for those that are read."""
        return self._ops.record(forward, specs), self._ops.record(forward, specs, kept)

    def _record_decode(
        self, decode: Callable[..., torch.Tensor], specs: Sequence[TensorSpec], capture: Capture
    ) -> None:
        """decode: a batch's logits, where every row draws. capture: Ops.capture, of all that may decode at a time."""

    def _make_builder(self, kv: list[tuple[torch.Tensor, torch.Tensor]], **sizes: Any) -> BatchBuilder:
        return BatchBuilder(kv, **sizes)

    @staticmethod
    def _logit_rows(vocab_size: int, max_num_seqs: int) -> int:
        """How many rows of logits are made at a time."""
        return max(16, _LOGIT_BLOCK_BYTES // (4 * vocab_size) // 16 * 16)

    def _make_sampler(self, max_num_seqs: int, vocab_size: int) -> Sampler:
        return Sampler(self._ops, max_num_seqs=max_num_seqs, vocab_size=vocab_size, processors=self._processors)

    def use_grammars(self, matcher_of: Callable[[Structured], Matcher]) -> None:
        """matcher_of: Grammars.matcher; asked at the start of each sequence with SamplingParams.structured."""
        self._sampler.matcher_of = matcher_of

    def submit(self, plan: Plan) -> Step:
        """Start a step, or run the last one again, whole or a part of its sequences at a time.

        Raises what the model or the sampler raises; then nothing was drawn.
        """
        with torch.inference_mode():
            self._take_over(plan)
            if not plan.steps:
                return Step(plan.step, StepResult([], []))
            built = self._build(plan)
            if built.own_rows is not None:
                for table in self._rotations:
                    table.values.index_copy_(0, built.own_rows, table.own_rows(built.own))
            found: dict[int, list[TokenLogprob]] = {}
            vectors: dict[int, torch.Tensor] = {}
            if built.every_row:
                hidden = self._run_rows(built)
            elif all(seq.prompt_logprobs < 0 and not seq.pooling for seq in plan.kinds):
                hidden = self._run_kept(built)
            else:
                every = self._run_rows(built)
                found = self._prompt_logprobs(every, plan.kinds)
                vectors = self._pool(every, plan.kinds)
                hidden = every.index_select(0, built.draw_rows)
            tokens, logprobs = self._draw(hidden, built.draw_slots, built.ahead)
            if built.ahead is not None:
                tokens, logprobs = reject(plan.steps, tokens, logprobs)
            result = StepResult(tokens, logprobs, found, vectors)
        if tokens:
            self._sampler.commit(*standing(built.draw_slots, tokens))
            result.broken = self._sampler.broken
        return Step(plan.step, result)

    def collect(self, step: Step) -> StepResult:
        """Wait for a step and return what it made."""
        return step.result

    def discard(self, step: Step) -> None:
        """Wait for a step whose results nobody wants."""

    def _build(self, plan: Plan) -> BuiltBatch:
        built = self._builder.build(plan.steps, plan.again, plan.more)
        for table in self._rotations:
            table.reach(built.num_pages * self._page_size)
        return built

    def _take_over(self, plan: Plan) -> None:
        for slot in plan.ends:
            self._sampler.end(slot)
            self._pooler.end(slot)
        for start in plan.starts:
            self._sampler.start(start)
            self._builder.start(start.slot, start.adapter)
        if plan.step != self._copied:  # a second run of the step might copy what the first has written since
            for copies in independent_copies(plan.copies):
                src, dst = torch.tensor(copies, dtype=torch.int32).T.contiguous()
                self._ops.copy_pages(self.cache.keys, self.cache.values, src, dst)
            self._copied = plan.step

    def _run_rows(self, built: BuiltBatch) -> torch.Tensor:
        """[T, H]."""
        if built.adapters is None:
            return self._forward(*built.batch.tensors)
        return self._forward_adapted(*built.batch.tensors, built.adapters)

    def _run_kept(self, built: BuiltBatch) -> torch.Tensor:
        """[draws, H]: of the rows that draw."""
        if built.adapters is None:
            return self._forward_kept(*built.batch.tensors, *built.kept)
        of_draws = built.adapters.index_select(0, built.draw_rows)
        return self._forward_adapted_kept(*built.batch.tensors, built.adapters, *built.kept, of_draws)

    def _draw(
        self, hidden: torch.Tensor, slots: list[int], ahead: list[list[int]] | None
    ) -> tuple[list[int], list[TokenLogprob | None]]:
        """hidden [len(slots), H]: a row for each token that is drawn."""
        block = self._block
        if 0 < len(slots) <= block:
            return self._sampler.draw(self._logits(hidden), slots, ahead)
        tokens: list[int] = []
        logprobs: list[TokenLogprob | None] = []
        for begin in range(0, len(slots), block):
            part = slice(begin, begin + block)
            some = None if ahead is None else ahead[part]
            drawn, entries = self._sampler.draw(self._logits(hidden[part]), slots[part], some)
            tokens += drawn
            logprobs += entries
        return tokens, logprobs

    def _pool(self, hidden: torch.Tensor, seqs: list[SeqStep]) -> dict[int, torch.Tensor]:
        rows = self._pooler.rows(seqs)
        if not rows:
            return {}
        picked = hidden.index_select(0, torch.tensor(rows, dtype=torch.int32))
        return self._pooler.add(seqs, self._pooler.hidden(picked))

    def _prompt_logprobs(self, hidden: torch.Tensor, seqs: list[SeqStep]) -> dict[int, list[TokenLogprob]]:
        found: dict[int, list[TokenLogprob]] = {}
        row = 0
        for seq in seqs:
            if seq.prompt_logprobs >= 0:
                targets = seq.tokens[1:] if seq.next_token < 0 else [*seq.tokens[1:], seq.next_token]
                entries = found[seq.slot] = []
                for begin in range(0, len(targets), self._block):
                    chunk = torch.tensor(targets[begin : begin + self._block], dtype=torch.int32)
                    logits = self._logits(hidden[row + begin : row + begin + len(chunk)])
                    entries += token_logprobs(self._ops, logits, chunk, [seq.prompt_logprobs] * len(chunk))
            row += len(seq.tokens)
        return found
