"""What is known of a step on a device that works by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from octavo_engine.execution.batch import BuiltBatch
from octavo_engine.execution.device import Done
from octavo_engine.execution.device_sampler import Draw, Fetched, Held
from octavo_engine.scheduling.plan import Plan

__all__ = ["DeviceStep", "Rows", "Work"]


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
        return f"step {self.plan.step} of {self.plan.num_tokens} tokens in {len(self.plan.steps)} sequences"


@dataclass(slots=True)
class Rows:
    """What stays on the device while the same sequences decode: their slots, their columns of the slots' tables, and
    their pages as of the last step that brought one (filled in by the device)."""

    built: BuiltBatch
    slots: Tensor
    query_start: Tensor
    columns: Tensor
    page_table: Tensor | None = None


@dataclass(slots=True)
class Work:
    """What the device is told of a step; nothing in it changes afterwards."""

    step: DeviceStep
    copies: list[int]  # of so many pages each, one after the other
    sent: dict[str, Tensor] = field(default_factory=dict)
    rows: Rows | None = None
    every_pending: bool = False  # every row draws, and goes on from what the same slot drew last
    draw: Draw | None = None
    tops: list[int] = field(default_factory=list)
    prompts: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Slot, first row, first target, number, best tokens."""
