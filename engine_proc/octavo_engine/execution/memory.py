"""How much of a device's memory the KV cache can take: what weights, the largest step and captured steps leave."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from octavo.options import MAX_LOGPROBS, SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.scheduling.plan import Plan, SeqStart, SeqStep

if TYPE_CHECKING:
    from octavo_engine.layers.lora import Adapters
    from octavo_engine.models.base import CausalLM
    from octavo_engine.ops import Ops

__all__ = ["CudaMemory", "DeviceMemory", "Measured", "capture_steps", "measure", "profile_step"]


class DeviceMemory(Protocol):
    """Bytes of a device, all processes counted."""

    def free(self) -> int:
        """What nobody holds, after giving back what is only kept for later."""
        ...

    def total(self) -> int: ...

    def peak_of(self, work: Callable[[], None]) -> int:
        """The most that `work` held at a time, beyond what was held before it."""
        ...


class CudaMemory:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def total(self) -> int:
        return torch.cuda.mem_get_info(self._device)[1]

    def peak_of(self, work: Callable[[], None]) -> int:
        before, outside = torch.cuda.memory_allocated(self._device), self._outside()
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before + max(0, self._outside() - outside)

    def _outside(self) -> int:
        """What torch's allocator knows nothing of, such as the code of kernels, which is loaded at their first use."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)


@dataclass(frozen=True)
class Measured:
    """Bytes. limit: what the engine may take in all, weights included. taken: what it held before the largest step, of
    which activations are on top: those of the model that has more, as a draft model runs between the model's steps.
    graphs: of the captured steps of both, beside all that."""

    limit: int
    taken: int
    activations: int
    graphs: int

    @property
    def cache(self) -> int:
        """What is left for the KV cache; may be negative."""
        return self.limit - self.taken - self.activations - self.graphs

    def __str__(self) -> str:
        return (
            f"{_mb(self.limit)} to take, less {_mb(self.taken)} of weights, {_mb(self.activations)} of activations and "
            f"{_mb(self.graphs)} of captured steps, leave {_mb(self.cache)}"
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def measure(
    memory: DeviceMemory,
    *,
    free_at_start: int,
    utilization: float,
    steps: Sequence[Callable[[], int]],
    captures: Sequence[Callable[[], DeviceRunner]],
) -> Measured:
    """Of the model, and of a draft model where there is one: each of `steps` runs its largest step and returns the
    bytes of cache that it made for that; each of `captures` makes its runner as it will be, but for the size of its
    cache. utilization: 0 .. 1, of what was free at the start."""
    taken = free_at_start - memory.free()
    activations = max(_activations(memory, step) for step in steps)
    before = memory.free()
    runners = [capture() for capture in captures]
    graphs = before - memory.free() - sum(runner.cache.nbytes for runner in runners)
    runners.clear()
    memory.free()
    return Measured(int(free_at_start * utilization), taken, activations, max(graphs, 0))


def _activations(memory: DeviceMemory, step: Callable[[], int]) -> int:
    cache = 0

    def work() -> None:
        nonlocal cache
        cache = step()

    return memory.peak_of(work) - cache


def profile_step(
    model: CausalLM,
    ops: Ops,
    *,
    page_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    kv_dtype: torch.dtype,
    guesses: int = 0,
    max_guessed: int = 0,
    adapters: Adapters | None = None,
) -> int:
    """Run one step of as many tokens, in as many sequences, as there can be, all of them drawing with whatever takes
    memory, and with an adapter where there may be one; on a cache that holds just those. guesses: tokens that may be
    guessed of a sequence, in at most max_guessed of them: a row of logits for each. Returns the cache's bytes. Raises
    execution.errors.OutOfMemory.
    """
    count = min(max_num_seqs, max_num_batched_tokens)
    guessed = min(max_guessed, count)
    drafts = min(guesses, (max_num_batched_tokens - count) // guessed, max_model_len - 1) if guessed else 0
    needed = [1 + drafts] * guessed + [1] * (count - guessed)
    spare = max_num_batched_tokens - sum(needed)
    lengths = [min(n + spare // count, max_model_len) for n in needed]
    lengths[0] = min(max_num_batched_tokens - sum(lengths[1:]), max_model_len)
    pages = [-(-n // page_size) for n in lengths]
    runner = DeviceRunner(
        model,
        ops,
        num_pages=sum(pages),
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_dtype=kv_dtype,
        graphs=False,
        adapters=adapters,
    )
    # Penalties and masks work on a copy of the logits.
    params = SamplingParams(top_k=50, top_p=0.9, logprobs=MAX_LOGPROBS, repetition_penalty=1.1, allowed_token_ids=(0,))
    adapter = -1 if adapters is None else 0
    starts = [SeqStart(slot, params, slot, [0] * n, [], adapter=adapter) for slot, n in enumerate(lengths)]
    seqs, page = [], 0
    for slot, (n, held) in enumerate(zip(lengths, pages, strict=True)):
        seq = SeqStep(slot, 0, [0] * n, 0, list(range(page, page + held)), [slot])
        seq.drafts = drafts if slot < guessed else 0
        seqs.append(seq)
        page += held
    runner.collect(runner.submit(Plan(0, [], starts, [], seqs)))
    return runner.cache.nbytes


def capture_steps(
    model: CausalLM,
    ops: Ops,
    *,
    page_size: int,
    max_num_seqs: int,
    max_model_len: int,
    kv_dtype: torch.dtype,
    adapters: Adapters | None = None,
) -> DeviceRunner:
    """A runner with every step captured that the engine's will have, on a cache of one page: a captured step's memory
    does not depend on the cache, but its addresses do, so these are of no further use."""
    return DeviceRunner(
        model,
        ops,
        num_pages=1,
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        kv_dtype=kv_dtype,
        adapters=adapters,
    )
