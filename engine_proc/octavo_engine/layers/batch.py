"""What a model's forward needs to know of a step: tensors only, built by execution from a Plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Batch"]


@dataclass
class Batch:
    """T tokens of S sequences, concatenated in the order of the sequences; shapes as in octavo_engine.ops.

    token_ids, positions, slots: [T] int32; slot = page * page_size + offset, where a token's key and value are written.
    query_start [S + 1], seq_lens [S], page_table [S, max_pages]: int32, see Ops.paged_attention.
    kv: one (keys, values) pair a layer, see ops.KVLayout.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    query_start: Tensor
    seq_lens: Tensor
    page_table: Tensor
    kv: list[tuple[Tensor, Tensor]]
