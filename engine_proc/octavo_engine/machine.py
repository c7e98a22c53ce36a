"""Which device the engine takes, and how much of its memory the KV cache gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine import config
from octavo_engine.execution import kv_cache
from octavo_engine.execution.errors import OutOfMemory
from octavo_engine.execution.memory import CudaMemory, DeviceMemory, Measured, capture_steps, measure, profile_step
from octavo_engine.ops import OpsUnavailable, load_ops
from octavo_engine.ops.eager import EagerOps

if TYPE_CHECKING:
    from octavo.options import EngineOptions
    from octavo_engine.execution.device_runner import DeviceRunner
    from octavo_engine.layers.lora import Adapters
    from octavo_engine.models.base import CausalLM
    from octavo_engine.ops import Ops

__all__ = ["Machine", "NoRoom"]

log = logging.getLogger("octavo.engine")


class NoRoom(Exception):
    """The device's memory does not do. `option`: the message is of an option's value, as that of InvalidOption."""

    def __init__(self, message: str, *, option: bool = False) -> None:
        super().__init__(message)
        self.option = option


class Machine:
    """`ops` of the device that EngineOptions.device asks for; "auto" is a GPU where one can be used, else the CPU.

    Made before the model is loaded, since it remembers what was free then. Raises OpsUnavailable.
    """

    def __init__(
        self, asked: str, num_threads: int, memory: DeviceMemory | None = None, *, batch_invariant: bool = False
    ) -> None:
        self.ops = _choose_ops(asked, num_threads, batch_invariant)
        if memory is None and self.ops.device.type == "cuda":
            memory = CudaMemory(self.ops.device)
        self._memory = memory
        self._free_at_start = 0 if memory is None else memory.free()

    @property
    def device(self) -> str:
        """As EngineOptions has it."""
        return str(self.ops.device)

    def step_tokens(self, options: EngineOptions) -> int:
        """EngineOptions.max_num_batched_tokens, also where the user names none."""
        default = config.DEFAULT_BATCHED_TOKENS if self._memory is None else config.DEFAULT_BATCHED_TOKENS_GPU
        return options.max_num_batched_tokens or max(default, options.max_num_seqs)

    def too_large(self, error: Exception) -> NoRoom:
        """The model ran out of the device's memory."""
        if self._memory is None:
            return NoRoom(str(error))
        return NoRoom(
            f"the model does not fit in the memory of {self.device}, {self._of_all()}; quantise it "
            "(EngineOptions.quantization='int4'), free the memory that others hold, or take another device"
        )

    def too_large_beside(self, cache: int, error: Exception) -> NoRoom:
        """The cache, or the graphs captured after it, ran out of memory."""
        if self._memory is None:
            return NoRoom(str(error))
        return NoRoom(
            f"a KV cache of {cache / 1e6:.0f} MB and the steps captured beside it do not fit in the memory of "
            f"{self.device}, {self._of_all()}; lower EngineOptions.gpu_memory_utilization (or kv_cache_memory) or "
            "max_num_seqs"
        )

    def _of_all(self) -> str:
        assert self._memory is not None
        return f"{self._free_at_start / 1e6:.0f} MB free at start of {self._memory.total() / 1e6:.0f} MB"

    def cache_memory(
        self,
        options: EngineOptions,
        model: CausalLM,
        kv_dtype: torch.dtype,
        page_bytes: int,
        draft: CausalLM | None = None,
        adapters: Adapters | None = None,
    ) -> int:
        """Bytes for the KV cache: kv_cache_memory, or what the machine can give. Raises NoRoom.

        page_bytes: of a page of the model's cache and of a draft model's beside it.
        """
        length = options.max_model_len or model.config.max_position
        if self._memory is None:
            return options.kv_cache_memory or kv_cache.default_kv_memory(
                available=config.available_memory(),
                page_bytes=page_bytes,
                page_size=options.page_size,
                max_num_seqs=options.max_num_seqs,
                max_model_len=length,
            )
        models = [model] if draft is None else [model, draft]
        measured = self._measure(self._memory, options, models, kv_dtype, length, adapters)
        log.info("memory of %s: %s for the KV cache", self.device, measured)
        most = -(-length // options.page_size) * options.max_num_seqs * page_bytes
        wanted = options.kv_cache_memory or min(measured.cache, most)
        pages = wanted // page_bytes
        knobs = "raise EngineOptions.gpu_memory_utilization, lower max_num_batched_tokens or quantise the weights"
        if measured.cache < page_bytes:
            raise NoRoom(f"no room for a KV cache on {self.device} ({self._of_all()}): {measured}; {knobs}")
        if wanted > measured.cache:
            text = f"kv_cache_memory={wanted}: at most what is left on {self.device}, {measured}; or {knobs}"
            raise NoRoom(text, option=True)
        if options.max_model_len is not None and pages * options.page_size < options.max_model_len:
            raise NoRoom(
                f"max_model_len={options.max_model_len}: at most {pages * options.page_size}, the tokens that the KV "
                f"cache of {wanted / 1e6:.0f} MB holds; {knobs}, or take EngineOptions.kv_cache_dtype='int8'",
                option=True,
            )
        return wanted

    def _measure(
        self,
        memory: DeviceMemory,
        options: EngineOptions,
        models: list[CausalLM],
        kv_dtype: torch.dtype,
        length: int,
        adapters: Adapters | None,
    ) -> Measured:
        tokens = self.step_tokens(options)
        spec: Any = options.speculation
        steps: list[Callable[[], int]] = []
        captures: list[Callable[[], DeviceRunner]] = []
        for model in models:
            sizes: dict[str, Any] = {
                "page_size": options.page_size,
                "max_num_seqs": options.max_num_seqs,
                "max_model_len": min(length, model.config.max_position),
                "kv_dtype": kv_dtype,
                "adapters": adapters if model is models[0] else None,
            }
            ops: Any = self.ops if model.config.recordable else EagerOps(self.ops)
            captures.append(partial(capture_steps, model, ops, **sizes))
            sizes["max_num_batched_tokens"] = tokens
            if spec is not None and model is models[0]:  # the draft model itself draws one token a sequence
                sizes |= {"guesses": spec.num_speculative_tokens, "max_guessed": spec.disable_by_batch_size}
            steps.append(partial(profile_step, model, ops, **sizes))
        try:
            return measure(
                memory,
                free_at_start=self._free_at_start,
                utilization=options.gpu_memory_utilization,
                steps=steps,
                captures=captures,
            )
        except (OutOfMemory, MemoryError, torch.OutOfMemoryError) as error:
            raise NoRoom(
                f"a step of max_num_batched_tokens={tokens} tokens in max_num_seqs={options.max_num_seqs} sequences "
                f"does not fit on {self.device} beside the weights ({self._of_all()}); lower one of the two"
            ) from error


def _choose_ops(asked: str, num_threads: int, batch_invariant: bool) -> Ops:
    if asked == "auto":
        why = _no_gpu()
        if why is None:
            try:
                ops = load_ops("cuda", batch_invariant=batch_invariant)
                log.info("device='auto' is %s: %s, %s", ops.device, torch.cuda.get_device_name(ops.device), ops.isa)
                return ops
            except OpsUnavailable as error:
                why = str(error)
        log.info("device='auto' is the CPU: %s", why)
    device = "cpu" if asked == "auto" else asked
    return load_ops(device, num_threads=num_threads, batch_invariant=batch_invariant)


def _no_gpu() -> str | None:
    """Why there is none to be had, found out without loading anything."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        from octavo_engine.ops.cuda import why_no_device

        return f"torch {torch.__version__} finds no CUDA device: {why_no_device()}"
    return None
