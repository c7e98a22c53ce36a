"""Adapters on rows of a batch, on CUDA (csrc/cuda/lora.h).

Every layer has room for all adapters from the start: slots of one rank at fixed addresses, so that captured steps stay
valid while adapters come and go, and loading one needs no memory that the cache has taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops.lora import LoraTable, segments_of
from octavo_engine.ops.types import Activation, LinearWeight, PackedLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, device, dtype

__all__ = ["CudaLora", "SlotTable"]

_RANKS = 16  # a slot's are a multiple of it
_ALIGNED = 32  # elements of K
_GATES = 16  # columns of gates, then of ups, of a quantised weight (csrc/cuda/quantized.h)


class SlotTable(LoraTable):
    """A LoraTable in a device's memory; what csrc/cuda/lora.h's LoraArgs calls by the same names.

    down [adapters, parts, rank, K filled up], up [adapters, N of y, rank], ranks and scales [adapters, parts], part_of
    [N of y]. `put` and `drop` are enqueued like ops: steps that are under way still see what was there.
    """

    def __init__(
        self, sizes: Sequence[int], gates: int, plain: LinearWeight, adapters: int, rank: int, dtype: dtype, on: device
    ) -> None:
        segments = segments_of(sizes, gates)
        super().__init__(adapters, len(sizes), segments, plain)
        columns, rank = plain.out_features, -(-rank // _RANKS) * _RANKS
        width = -(-plain.in_features // _ALIGNED) * _ALIGNED
        self.down = torch.zeros((adapters, len(sizes), rank, width), dtype=dtype, device=on)
        self.up = torch.zeros((adapters, columns, rank), dtype=dtype, device=on)
        self.ranks = torch.zeros((adapters, len(sizes)), dtype=torch.int32, device=on)
        self.scales = torch.zeros((adapters, len(sizes)), dtype=torch.float32, device=on)
        part_of = torch.full((columns,), -1, dtype=torch.int32)
        places = [torch.zeros(size, dtype=torch.int64) for size in sizes]
        for first, count, part, column in segments:
            part_of[first : first + count] = part
            places[part][column : column + count] = torch.arange(first, first + count)
        self.part_of, self._places = part_of.to(on), [place.to(on) for place in places]

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def put(self, adapter: int, part: int, down: Tensor, up: Tensor, scale: float) -> None:
        """down [r, K], up [r, N], contiguous, of the slots' type; r at most their rank. Copied before it returns, or
        soon after where it lies in pinned memory."""
        rank, on = len(down), self.down.device
        slot = self.down[adapter, part]
        slot.zero_()
        slot[:rank, : down.shape[1]].copy_(down, non_blocking=True)
        columns = torch.zeros((up.shape[1], self.up.shape[2]), dtype=up.dtype, device=on)
        columns[:, :rank] = up.to(on, non_blocking=True).T
        self.up[adapter].index_copy_(0, self._places[part], columns)
        self.scales[adapter, part].fill_(scale)
        self.ranks[adapter, part].fill_(rank)

    def drop(self, adapter: int) -> None:
        self.ranks[adapter].zero_()


class CudaLora:
    """The mixin of `CudaOps` for adapters. `_bind_lora` comes first."""

    if TYPE_CHECKING:
        device: device

        def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...

    def _bind_lora(self, library: Any) -> None:
        self._lora_add = library.lora_add
        self._lora_partials = library.lora_partials
        self._finish_linear = library.finish_linear

    def lora_table(
        self, weight: LinearWeight, sizes: Sequence[int], *, adapters: int, rank: int, dtype: dtype
    ) -> LoraTable:
        gates = _gates(weight)
        columns = weight.out_features if not gates else -(-weight.out_features // 2 // gates) * 2 * gates
        plain = replace(weight, out_features=columns, gated=False)
        return SlotTable(sizes, gates, plain, adapters, rank, dtype, self.device)

    def lora_add_(self, y: Tensor, x: Tensor, adapters: Tensor, table: LoraTable) -> None:
        assert isinstance(table, SlotTable)
        _, parts, rank, _ = table.down.shape
        v = self._empty((self._lora_partials(x), x.shape[0], parts * rank), torch.float32)
        self._lora_add(y, x, adapters, table.down, table.up, table.ranks, table.scales, table.part_of, v)

    def finish_linear(
        self, y: Tensor, bias: Tensor | None, weight: LinearWeight, *, act: Activation, out_dtype: dtype
    ) -> Tensor:
        n = weight.out_features
        if not weight.gated and bias is None and act == Activation.NONE and out_dtype == y.dtype:
            return y
        out = self._empty((y.shape[0], n // 2 if weight.gated else n), out_dtype)
        self._finish_linear(out, y, bias, n, int(act), weight.gated, _gates(weight))
        return out


def _gates(weight: LinearWeight) -> int:
    """Columns of gates before as many of ups in the product of a gated weight; 0: it is not gated."""
    if not weight.gated:
        return 0
    return weight.out_features // 2 if isinstance(weight, PackedLinear) else _GATES
