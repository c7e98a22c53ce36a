"""The least time that a machine needs for some work, from what its probes gave.

A step reads every weight once and the KV cache of every running sequence, and does two floating-point operations a
weight and token; it can't be faster than the slower of the two. Norms, embeddings and sampling are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.models import Shape
from tests.bench.workload import Case

__all__ = ["Machine", "decode_rate", "limit", "overall_rate", "prefill_seconds"]

_BYTES = 2  # an element, bfloat16


@dataclass(frozen=True)
class Machine:
    """What the probes measured: bytes/s read and bfloat16 FLOP/s, on all threads."""

    bandwidth: float
    arithmetic: float


def _step(shape: Shape, machine: Machine, rows: int, logits: int, keys: float, caches: float) -> tuple[float, float]:
    """Seconds for the memory and for the arithmetic of one step.

    rows: tokens computed, logits: of them with logits, keys: query-key pairs, caches: tokens whose KV is read.
    """
    read: float = shape.layer_weights + shape.head_weights + caches * shape.kv_elements
    done: float = 2 * (rows * shape.layer_weights + logits * shape.head_weights)
    done += 4 * keys * shape.layers * shape.heads * shape.head_dim
    return read * _BYTES / machine.bandwidth, done / machine.arithmetic


def _decode_step(shape: Shape, machine: Machine, case: Case) -> tuple[float, float]:
    context = case.streams * (case.prompt + case.output / 2)
    return _step(shape, machine, case.streams, case.streams, context, context)


def prefill_seconds(shape: Shape, machine: Machine, case: Case) -> float:
    """All prompts of the case, with the logits of each one's last token."""
    pairs = case.streams * case.prompt * (case.prompt + 1) / 2
    return max(_step(shape, machine, case.streams * case.prompt, case.streams, pairs, 0))


def decode_rate(shape: Shape, machine: Machine, case: Case) -> float:
    """Tokens/s while all streams decode."""
    return case.streams / max(_decode_step(shape, machine, case))


def overall_rate(shape: Shape, machine: Machine, case: Case) -> float:
    """What the case counts (prompt tokens of a prefill, else output tokens) over all its time."""
    steps = (case.output - 1) * max(_decode_step(shape, machine, case))
    return case.counted / (prefill_seconds(shape, machine, case) + steps)


def limit(shape: Shape, machine: Machine, case: Case) -> str:
    """Which of the two bounds the case: "bandwidth" or "arithmetic"."""
    if case.is_prefill:
        return "arithmetic"
    memory, arithmetic = _decode_step(shape, machine, case)
    return "bandwidth" if memory >= arithmetic else "arithmetic"
