"""Embeddings: one vector out of a sequence's hidden states behind the final norm.

A mean's rows are added one by one in the order of their positions, in float32: the sum is the same however the sequence
was cut in chunks and whatever ran beside it (law 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo_engine.scheduling.plan import SeqStep

if TYPE_CHECKING:
    from octavo_engine.models.base import CausalLM

__all__ = ["NotFinite", "Pooler", "embedding_size", "vector_bytes"]


class NotFinite(Exception):
    """The hidden states are infinite or NaN."""


class Pooler:
    """`rows` picks, `hidden` norms, `add` sums up. A step may run again: the sum before it is kept, too."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._sums: dict[int, dict[int, Tensor]] = {}  # by slot, then by the number of tokens in the sum

    def end(self, slot: int) -> None:
        """The slot is free. Idempotent."""
        self._sums.pop(slot, None)

    @staticmethod
    def rows(seqs: list[SeqStep]) -> list[int]:
        """Which rows of the step's tokens are wanted."""
        found: list[int] = []
        row = 0
        for seq in seqs:
            stop = row + len(seq.tokens)
            if seq.pooling:
                found += range(row, stop) if seq.pooling == "mean" else [stop - 1]
            row = stop
        return found

    def hidden(self, picked: Tensor) -> Tensor:
        """Rows of the residual stream [R, H] -> [R, E] float32."""
        return self._model.hidden_states(picked)

    def add(self, seqs: list[SeqStep], hidden: Tensor) -> dict[int, Tensor]:
        """hidden [R, E] float32 on the host, of `rows(seqs)` -> by slot the vectors that are complete now."""
        done: dict[int, Tensor] = {}
        row = 0
        for seq in seqs:
            if not seq.pooling:
                continue
            count = len(seq.tokens) if seq.pooling == "mean" else 1
            part = hidden[row : row + count]
            row += count
            if seq.pooling == "last":
                done[seq.slot] = part[0].clone()  # `hidden` is lent
                continue
            before = part.new_zeros(part.shape[1]) if seq.start == 0 else self._sums[seq.slot][seq.start]
            stop = seq.start + count
            after = _add_rows(before, part)
            self._sums[seq.slot] = {seq.start: before, stop: after}
            if seq.pooled:
                done[seq.slot] = after / stop
        return done


def embedding_size(model: CausalLM, device: torch.device) -> int:
    """E, the elements of a vector."""
    with torch.inference_mode():
        return model.hidden_states(torch.zeros((1, model.config.hidden_size), device=device)).shape[1]


def _add_rows(before: Tensor, rows: Tensor) -> Tensor:
    """before [E] + rows[0] + rows[1] + ...; index_add_ adds row after row on a CPU, where a sum would build a tree."""
    same = torch.zeros(len(rows), dtype=torch.int64)
    return before.clone().unsqueeze(0).index_add_(0, same, rows)[0]


def vector_bytes(vector: Tensor, *, normalize: bool, dimensions: int | None) -> bytes:
    """[E] float32 -> its first `dimensions` elements, scaled to length 1 where asked, as little-endian float32.

    The first elements alone are a good embedding of models trained for that (Matryoshka, arXiv 2205.13147). Raises
    NotFinite.
    """
    vector = vector[:dimensions]
    if not bool(torch.isfinite(vector).all()):
        raise NotFinite("the hidden states of the prompt are infinite or NaN")
    if normalize:
        vector = torch.nn.functional.normalize(vector, dim=0)
    return vector.contiguous().numpy().astype("<f4", copy=False).tobytes()
