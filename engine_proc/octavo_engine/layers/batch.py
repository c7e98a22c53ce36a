"""What a model's forward needs to know of a step: tensors only, built by execution from a Plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from octavo_engine.ops import KeptRows, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["BATCH_SPECS", "KEPT_ROWS", "Batch"]


@dataclass
class Batch:
    """T tokens of S sequences, concatenated in the order of the sequences; shapes as in octavo_engine.ops.

    token_ids, positions, slots: [T] int32; slot = page * page_size + offset, where a token's key and value are written.
    positions are rows of the model's rotation tables, see layers.rope.Regimes: 0, 1, ... where there are no regimes.
    query_start [S + 1], seq_lens [S], page_table [S, max_pages]: int32, see Ops.paged_attention.
    kv: one (keys, values) pair a layer, see ops.KVLayout.
    A row added to a batch writes nothing where its slot is -1, and is a sequence of no tokens.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    query_start: Tensor
    seq_lens: Tensor
    page_table: Tensor
    kv: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], kv: list[tuple[Tensor, Tensor]]) -> Batch:
        """The inverse of `tensors`."""
        token_ids, positions, slots, query_start, seq_lens, page_table = tensors
        return cls(token_ids, positions, slots, query_start, seq_lens, page_table, kv)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What changes from step to step, in the order of the fields and of BATCH_SPECS."""
        return self.token_ids, self.positions, self.slots, self.query_start, self.seq_lens, self.page_table


BATCH_SPECS = (
    TensorSpec(("T",), torch.int32),
    TensorSpec(("T",), torch.int32),
    TensorSpec(("T",), torch.int32),
    TensorSpec(("S + 1",), torch.int32),
    TensorSpec(("S",), torch.int32),
    TensorSpec(("S", "pages"), torch.int32),
)
# The slots say where keys and values are written; query_start, seq_lens and page_table what a row attends to.
KEPT_ROWS = KeptRows(writes=2, inputs=(3, 4, 5))
