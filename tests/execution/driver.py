"""A tiny LLaMA with random weights, and a hand-driven scheduler: what a test wants to run, in the order it wants."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.options import SamplingParams
from octavo.wire import TokenLogprob
from octavo_engine.execution.runner import Runner
from octavo_engine.models import load_model
from octavo_engine.models.base import CausalLM
from octavo_engine.ops import Ops
from octavo_engine.scheduling.plan import Plan, SeqStart, SeqStep

VOCAB = 211


class RandomSource:
    """A llama checkpoint of 3 layers with 4 query and 2 key-value heads; the same weights every time.

    scaling: of a rotation that depends on the length, with regimes of up to 32, 64, 128 and more tokens; or none.
    """

    def __init__(self, scaling: str = "default") -> None:
        hidden, inner, heads, kv_heads, layers = 64, 96, 4, 2, 3
        self.config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "num_hidden_layers": layers,
            "vocab_size": VOCAB,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }
        if scaling == "dynamic":
            self.config |= {"max_position_embeddings": 32, "rope_scaling": {"type": scaling, "factor": 16.0}}
        shapes = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
        kv = hidden // heads * kv_heads
        for i in range(layers):
            p = f"model.layers.{i}."
            shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = (hidden,)
            shapes[p + "self_attn.q_proj.weight"] = shapes[p + "self_attn.o_proj.weight"] = (hidden, hidden)
            shapes[p + "self_attn.k_proj.weight"] = shapes[p + "self_attn.v_proj.weight"] = (kv, hidden)
            shapes[p + "mlp.gate_proj.weight"] = shapes[p + "mlp.up_proj.weight"] = (inner, hidden)
            shapes[p + "mlp.down_proj.weight"] = (hidden, inner)
        generator = torch.Generator().manual_seed(7)
        self._tensors = {
            name: torch.randn(shape, generator=generator) * (0.2 if len(shape) == 2 else 1.0)
            for name, shape in shapes.items()
        }
        self.checkpoint = self

    def names(self) -> list[str]:
        return list(self._tensors)

    def get(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes


def tiny_llama(ops: Ops, dtype: torch.dtype, quantization: str | None = None, scaling: str = "default") -> CausalLM:
    return load_model(RandomSource(scaling), ops, dtype, None, quantization=quantization)


@dataclass(eq=False)
class Sequence:
    """One sequence as the driver knows it. `sent`: page table entries that the runner has."""

    slot: int
    params: SamplingParams
    seed: int
    prompt: list[int]
    output: list[int]
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    sent: int = 0
    regime: int = 0
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output


class Driver:
    """Makes Plans: pages and slots are handed out in a shuffled order, so that nothing leans on their numbers."""

    def __init__(
        self,
        model: CausalLM,
        ops: Ops,
        *,
        kv_dtype: torch.dtype = torch.float32,
        num_pages: int = 800,
        page_size: int = 16,
        max_num_seqs: int = 80,
        max_model_len: int = 256,
        seed: int = 0,
        make: Callable[..., Runner] = Runner,
    ) -> None:
        self.runner = make(
            model,
            ops,
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_dtype=kv_dtype,
        )
        self.page_size, self.steps = page_size, 0
        self.regimes = model.config.regimes
        shuffle = random.Random(seed)
        self.free_pages = shuffle.sample(range(num_pages), num_pages)
        self.free_slots = shuffle.sample(range(max_num_seqs), max_num_seqs)
        self.page_owners: Counter[int] = Counter()
        self._ends: list[int] = []
        self._starts: list[SeqStart] = []
        self._copies: list[tuple[int, int]] = []

    def start(
        self,
        prompt: list[int],
        params: SamplingParams,
        seed: int = 0,
        *,
        output: list[int] | None = None,
        eos_ids: list[int] | None = None,
        bad_words: list[list[int]] | None = None,
        cached_from: Sequence | None = None,
        adapter: int = -1,
    ) -> Sequence:
        """A sequence takes a slot; with cached_from it finds its prompt's full pages in the cache."""
        output = list(output or [])
        sequence = Sequence(self.free_slots.pop(), params, seed, prompt, output)
        if cached_from is not None:
            sequence.pages = cached_from.pages[: (len(prompt) - 1) // self.page_size]
            sequence.computed = len(sequence.pages) * self.page_size
            self.page_owners.update(sequence.pages)
        history = list(output), eos_ids or [], bad_words or []
        self._starts.append(SeqStart(sequence.slot, params, seed, prompt, *history, adapter=adapter))
        return sequence

    def stop(self, sequence: Sequence) -> None:
        self._ends.append(sequence.slot)
        self.free_slots.append(sequence.slot)
        self.page_owners.subtract(sequence.pages)
        self.free_pages += [page for page in sequence.pages if not self.page_owners[page]]

    def plan(self, work: list[tuple[Sequence, int]], forks: dict[Sequence, list[Sequence]] | None = None) -> Plan:
        """One step of at most so many tokens a sequence. forks: who else draws from a sequence's last logits."""
        seqs = []
        for sequence, count in work:
            if self.regimes is not None:
                regime = self.regimes.choose(len(sequence.prompt), len(sequence.tokens))[0]
                if regime != sequence.regime:
                    sequence.regime, sequence.computed = regime, 0
            end = min(sequence.computed + count, len(sequence.tokens))
            while len(sequence.pages) * self.page_size < end:
                sequence.pages.append(self.free_pages.pop())
                self.page_owners[sequence.pages[-1]] += 1
            done = end == len(sequence.tokens)
            wanted = sequence.params.prompt_logprobs
            of_prompt = wanted is not None and sequence.computed < len(sequence.prompt)
            seqs.append(
                SeqStep(
                    sequence.slot,
                    sequence.computed,
                    sequence.tokens[sequence.computed : end],
                    sequence.sent,
                    sequence.pages[sequence.sent :],
                    [s.slot for s in [sequence, *(forks or {}).get(sequence, [])]] if done else [],
                    wanted if of_prompt and wanted is not None else -1,
                    sequence.prompt[end] if of_prompt and end < len(sequence.prompt) else -1,
                    sequence.regime,
                )
            )
            sequence.sent, sequence.computed = len(sequence.pages), end
        plan = Plan(self.steps, self._ends, self._starts, self._copies, seqs)
        self._ends, self._starts, self._copies = [], [], []
        self.steps += 1
        return plan

    def step(self, work: list[tuple[Sequence, int]], forks: dict[Sequence, list[Sequence]] | None = None) -> None:
        plan = self.plan(work, forks)
        result = self.runner.collect(self.runner.submit(plan))
        by_slot = {s.slot: s for s, _ in work} | {s.slot: s for ss in (forks or {}).values() for s in ss}
        slots = [slot for seq in plan.seqs for slot in seq.samplers]
        for slot, token, logprob in zip(slots, result.tokens, result.logprobs, strict=True):
            by_slot[slot].output.append(token)
            by_slot[slot].logprobs.append(logprob)
        for slot, entries in result.prompt_logprobs.items():
            by_slot[slot].prompt_logprobs += entries
        for parent, children in (forks or {}).items():
            for child in children if len(parent.output) == 1 else []:
                self._share(parent, child)

    def _share(self, parent: Sequence, child: Sequence) -> None:
        """The child owns the parent's full pages with it and gets a copy of the one that both will write to."""
        child.pages, child.computed = list(parent.pages), parent.computed
        if parent.computed % self.page_size:
            child.pages[-1] = self.free_pages.pop()
            self._copies.append((parent.pages[-1], child.pages[-1]))
        self.page_owners.update(child.pages)

    def finish(self, sequences: list[Sequence], num_tokens: int, chunk: int = 10_000) -> None:
        """Steps of all unfinished sequences together, until each has num_tokens of output."""
        while work := [(s, chunk) for s in sequences if len(s.output) < num_tokens]:
            self.step(work)
