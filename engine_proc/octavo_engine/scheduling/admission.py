"""What is let in: the scheduler's limits and the two ways to be refused."""

from __future__ import annotations

import msgspec

from octavo_engine.scheduling.sequence import Regimes, Request

__all__ = ["DoesNotFit", "QueueFull", "SchedulerConfig", "check_queue", "output_room"]


class QueueFull(Exception):
    """As much waits as max_queued_requests or max_queued_tokens allow: try again later."""


class DoesNotFit(Exception):
    """Never will this request run: it is empty, or exceeds the context or the whole cache."""


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, named as in EngineOptions.

    max_overtaken: later arrivals that may be admitted before a waiting sequence; then it is next.
    watermark: share of the pages that admission leaves free for the growth of what runs already.
    max_in_flight: plans that may be handed out and not yet committed, 1 or 2.
    regimes: where the model's rotation goes by the length of a sequence.
    """

    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True
    max_queued_requests: int = 4096
    max_queued_tokens: int = 8 << 20
    max_overtaken: int = 64
    watermark: float = 0.01
    max_in_flight: int = 1
    regimes: Regimes | None = None

    def __post_init__(self) -> None:
        names = ("num_pages", "page_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "max_overtaken")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        if self.max_in_flight not in (1, 2):
            raise ValueError(f"max_in_flight={self.max_in_flight}: 1 or 2")

    @property
    def cache_tokens(self) -> int:
        return self.num_pages * self.page_size


def output_room(request: Request, config: SchedulerConfig) -> int:
    """Tokens that the request may draw. Raises DoesNotFit."""
    prompt, wanted = len(request.prompt), request.params.max_tokens if request.draws else 0
    if not prompt:
        raise DoesNotFit("the prompt has 0 tokens; at least 1 is needed")
    total = prompt + (1 if wanted is None else wanted)
    asked = f"{prompt} prompt tokens and max_tokens={wanted} make {total} tokens" if wanted else f"{prompt} tokens"
    if wanted is None:
        asked = f"{prompt} prompt tokens and at least 1 of output make {total} tokens"
    if total > config.max_model_len:
        raise DoesNotFit(
            f"{asked}, more than max_model_len={config.max_model_len}; "
            "shorten the prompt, lower SamplingParams.max_tokens or raise EngineOptions.max_model_len"
        )
    if total > config.cache_tokens:
        raise DoesNotFit(
            f"{asked}, more than the whole KV cache of {config.cache_tokens} tokens ({config.num_pages} pages of "
            f"{config.page_size}); lower SamplingParams.max_tokens or raise EngineOptions.kv_cache_memory"
        )
    return wanted or min(config.max_model_len, config.cache_tokens) - prompt


def check_queue(request: Request, config: SchedulerConfig, num_waiting: int, num_tokens: int, free_slots: int) -> None:
    """Raises QueueFull. What free slots will take at the next step is not held against a new arrival."""
    if num_waiting - free_slots >= config.max_queued_requests:
        raise QueueFull(
            f"{num_waiting} requests wait for {free_slots} free slots; "
            f"EngineOptions.max_queued_requests={config.max_queued_requests}"
        )
    prompt = len(request.prompt)
    if num_waiting and num_waiting >= free_slots and num_tokens + prompt > config.max_queued_tokens:
        raise QueueFull(
            f"{num_tokens} tokens wait, {prompt} more would exceed "
            f"EngineOptions.max_queued_tokens={config.max_queued_tokens}"
        )
