"""What is known of a step on a device that works by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from octavo_engine.execution.device import Done
from octavo_engine.execution.device_sampler import Draw, Fetched, Held
from octavo_engine.scheduling.plan import Plan

__all__ = ["DeviceStep", "Work"]


@dataclass(slots=True)
class DeviceStep:
    """A submitted step. What the device fills in is there once `done` has been waited for."""

    plan: Plan
    slots: list[int] = field(default_factory=list)  # who draws
    drafted: bool = False
    read: list[int] = field(default_factory=list)
    """Whose prompt's logprobs are wanted. One whose chunk has no target is there too: its request may have waited for
    just that."""
    asked: list[int] = field(default_factory=list)  # the places in `slots` that want logprobs of the device
    held: Held | None = None
    held_logits: Tensor | None = None
    done: Done | None = None
    tokens: Tensor | None = None
    logprobs: Fetched | None = None
    prompt_logprobs: list[tuple[int, Fetched]] = field(default_factory=list)  # by slot, in chunks
    pooled: Tensor | None = None  # hidden states of the rows that Pooler.rows names

    def __str__(self) -> str:
        return f"step {self.plan.step} of {self.plan.num_tokens} tokens in {len(self.plan.kinds)} sequences"


@dataclass(slots=True)
class Work:
    """What the device is told of a step; nothing in it changes afterwards."""

    step: DeviceStep
    copies: list[int]  # of so many pages each, one after the other
    sent: dict[str, Tensor] = field(default_factory=dict)
    decode: int | None = None  # what was staged of a step in which every sequence brings a token and draws one
    num_seqs: int = 0
    adapted: bool = False
    num_pages: int = 0  # of the page table
    draw: Draw | None = None
    tops: list[int] = field(default_factory=list)
    prompts: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Slot, first row, first target, number, best tokens."""
