"""The least time that a machine needs for some work, from what its probes gave.

A step reads every packed weight once and the KV cache of every running sequence, and does two operations a weight and
token: in bfloat16, or in int8 where the activations are. It can't be faster than the slower of the two. Norms,
embeddings and sampling are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.models import Shape
from tests.bench.weights import Weights
from tests.bench.workload import Case

__all__ = ["Floor", "Machine"]

_KV_BYTES = 2  # an element, bfloat16


@dataclass(frozen=True)
class Machine:
    """What the probes measured on all threads: bytes/s read, bfloat16 FLOP/s, int8 operations/s."""

    bandwidth: float
    arithmetic: float
    integer: float


@dataclass(frozen=True)
class Floor:
    """Of one model with its weights held in one way, on one machine."""

    shape: Shape
    weights: Weights
    machine: Machine

    def _step(self, rows: float, logits: float, keys: float, caches: float) -> tuple[float, float]:
        """Seconds for the memory and for the arithmetic of one step.

        rows: tokens computed, logits: of them with logits, keys: query-key pairs, caches: tokens whose KV is read.
        """
        shape, machine = self.shape, self.machine
        read = (shape.layer_weights * self.weights.layer_bits + shape.head_weights * self.weights.head_bits) / 8
        read += caches * shape.kv_elements * _KV_BYTES
        products = 2 * (rows * shape.layer_weights + logits * shape.head_weights)
        attention = 4 * keys * shape.layers * shape.heads * shape.head_dim
        seconds = products / (machine.integer if self.weights.integer else machine.arithmetic)
        return read / machine.bandwidth, seconds + attention / machine.arithmetic

    def _decode_step(self, case: Case) -> tuple[float, float]:
        context = case.streams * (case.prompt + case.output / 2)
        return self._step(case.streams, case.streams, context, context)

    def prefill_seconds(self, case: Case) -> float:
        """All prompts of the case, with the logits of each one's last token."""
        pairs = case.streams * case.prompt * (case.prompt + 1) / 2
        return max(self._step(case.streams * case.prompt, case.streams, pairs, 0))

    def decode_rate(self, case: Case) -> float:
        """Tokens/s while all streams decode."""
        return case.streams / max(self._decode_step(case))

    def overall_rate(self, case: Case) -> float:
        """What the case counts (prompt tokens of a prefill, else output tokens) over all its time."""
        steps = (case.output - 1) * max(self._decode_step(case))
        return case.counted / (self.prefill_seconds(case) + steps)

    def limit(self, case: Case) -> str:
        """Which of the two bounds the case: "bandwidth" or "arithmetic"."""
        if case.is_prefill:
            return "arithmetic"
        memory, arithmetic = self._decode_step(case)
        return "bandwidth" if memory >= arithmetic else "arithmetic"
