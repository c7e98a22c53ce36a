"""Runs a model over hand-built batches: sequences over scattered pages, in chunks and mixed with each other."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from octavo_engine.execution.kv_cache import KVCache, cache_layout
from octavo_engine.layers.batch import BATCH_SPECS, Batch
from octavo_engine.layers.rope import OwnRows
from octavo_engine.models import CausalLM
from octavo_engine.ops import Ops, TensorSpec

PAGE_SIZE = 16


class Stepper:
    """`step` runs the next tokens of some sequences and returns each one's logits [tokens, V]."""

    def __init__(
        self,
        model: CausalLM,
        ops: Ops,
        *,
        sequences: int = 5,
        max_len: int = 256,
        recorded: bool = False,
        int8_cache: bool = False,
    ) -> None:
        config = model.config
        pages = -(-max_len // PAGE_SIZE)
        order = list(range(sequences * pages))
        random.Random(5).shuffle(order)
        self.page_table = torch.tensor(order, dtype=torch.int32).view(sequences, pages)
        kind = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32
        layout = cache_layout(config, len(order), PAGE_SIZE, torch.int8 if int8_cache else kind)
        cache = KVCache(ops, layout)
        if not int8_cache:  # What was never written must never be read.
            cache.keys.fill_(torch.nan)
            cache.values.fill_(torch.nan)
        self.kv = cache.layers
        self.lengths = [0] * sequences
        self.tokens: list[list[int]] = [[] for _ in range(sequences)]
        self.prompts = [0] * sequences  # their lengths
        self.tables, self.regimes = model.tables, config.regimes
        self.forward: Callable[..., Tensor] = lambda *tensors: model.forward(Batch.of(tensors, self.kv))
        self.logits: Callable[..., Tensor] = model.logits
        if recorded:
            self.forward = ops.record(self.forward, BATCH_SPECS)
            self.logits = ops.record(self.logits, [TensorSpec(("L", config.hidden_size), torch.float32)])

    def step(self, chunks: dict[int, list[int]]) -> dict[int, Tensor]:
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for sequence, tokens in chunks.items():
            first = self.lengths[sequence]
            self.lengths[sequence] += len(tokens)
            ids += tokens
            positions += self.rows(sequence, first, len(ids) - len(tokens))
            for position in range(first, self.lengths[sequence]):
                page = int(self.page_table[sequence, position // PAGE_SIZE])
                slots.append(page * PAGE_SIZE + position % PAGE_SIZE)
            starts.append(len(ids))
        for table in self.tables:
            table.reach(max(self.lengths))
        batch = Batch(
            token_ids=torch.tensor(ids, dtype=torch.int32),
            positions=torch.tensor(positions, dtype=torch.int32),
            slots=torch.tensor(slots, dtype=torch.int32),
            query_start=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor([self.lengths[s] for s in chunks], dtype=torch.int32),
            page_table=self.page_table[list(chunks)].contiguous(),
            kv=self.kv,
        )
        logits = self.logits(self.forward(*batch.tensors))
        assert logits.dtype == torch.float32
        return {s: logits[starts[i] : starts[i + 1]] for i, s in enumerate(chunks)}

    def regime(self, sequence: int) -> int:
        """By the length of what was given to prefill and drawn since."""
        if self.regimes is None:
            return 0
        return self.regimes.choose(self.prompts[sequence], len(self.tokens[sequence]))[0]

    def rows(self, sequence: int, start: int, row: int) -> range:
        """Where in the tables the positions from `start` on are, which are rows of the step from `row` on."""
        stop, length = self.lengths[sequence], self.regime(sequence)
        first = start
        if self.regimes is not None:
            known = self.regimes.first_rows.get(length)
            first = len(self.regimes.lengths) * self.regimes.rows + row if known is None else known + start
            if known is None:
                for table in self.tables:
                    table.values[first : first + stop - start] = table.own_rows([OwnRows(row, length, start, stop)])
        return range(first, first + stop - start)

    def prefill(self, prompts: list[list[int]], chunk: int = 1000) -> list[Tensor]:
        """All prompts together, at most `chunk` tokens of each a step; logits of every prompt token."""
        parts: list[list[Tensor]] = [[] for _ in prompts]
        self.tokens = [list(prompt) for prompt in prompts]
        self.prompts = [len(prompt) for prompt in prompts]
        for at in range(0, max(map(len, prompts)), chunk):
            chunks = {s: prompt[at : at + chunk] for s, prompt in enumerate(prompts) if prompt[at : at + chunk]}
            for s, logits in self.step(chunks).items():
                parts[s].append(logits)
        return [torch.cat(part) for part in parts]

    def greedy(self, last: list[Tensor], count: int) -> list[list[int]]:
        """`count` tokens of every sequence, given the logits [V] of its last token."""
        outputs: list[list[int]] = [[] for _ in last]
        for _ in range(count):
            chunks: dict[int, list[int]] = {}
            for s, (output, logits) in enumerate(zip(outputs, last, strict=True)):
                output.append(int(logits.argmax()))
                chunks[s], regime = output[-1:], self.regime(s)
                self.tokens[s].append(output[-1])
                if self.regime(s) != regime:  # all of it anew
                    self.lengths[s], chunks[s] = 0, self.tokens[s]
            stepped = self.step(chunks)
            last = [stepped[s][-1] for s in range(len(outputs))]
        return outputs
