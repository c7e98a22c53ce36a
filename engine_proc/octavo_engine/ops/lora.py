"""The adapters of one linear layer, as Ops.lora_add_ takes them, and that op in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_engine.ops.types import OpsUnavailable

__all__ = ["CudaLora", "LoraTable", "LowRank", "reference_lora_add"]


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one published layer [N, K]: x -> scale * up(down(x)), down [r, K], up [N, r]."""

    module: str
    down: Tensor
    up: Tensor
    scale: float


class LoraTable:
    """Up to `adapters` low-rank additions to a linear layer of `parts` published weights (LoRA, arXiv 2106.09685).

    y[:, columns of the part] += scale * (x @ down.T) @ up, for the rows of x that name the adapter.

    entries [adapters, parts, 4] int64: addresses of down [r, K] and up [r, N of the part], r, N; r = 0: none there.
    scales [adapters, parts] float32. segments [S, 4] int32: columns of y: the first, how many, of which part, and the
    first of that part's. Kernels read these tensors at every call, so an adapter that is put or dropped between two
    steps is in the next one, also of a recorded forward.
    """

    def __init__(self, adapters: int, parts: int, segments: Sequence[tuple[int, int, int, int]]) -> None:
        self.entries = torch.zeros((adapters, parts, 4), dtype=torch.int64)
        self.scales = torch.zeros((adapters, parts), dtype=torch.float32)
        self.segments = torch.tensor(segments, dtype=torch.int32)
        self.weights: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # keeps what entries point to alive

    def put(self, adapter: int, part: int, down: Tensor, up: Tensor, scale: float) -> None:
        """down [r, K], up [r, N], contiguous, of the type that the layer's x has."""
        self.weights[adapter, part] = down, up
        self.scales[adapter, part] = scale
        self.entries[adapter, part] = torch.tensor([down.data_ptr(), up.data_ptr(), len(down), up.shape[1]])

    def drop(self, adapter: int) -> None:
        """No step may be running that uses it."""
        self.entries[adapter] = 0
        for key in [key for key in self.weights if key[0] == adapter]:
            del self.weights[key]


def reference_lora_add(y: Tensor, x: Tensor, adapters: Tensor, table: LoraTable) -> None:
    """See Ops.lora_add_."""
    for (adapter, part), (down, up) in table.weights.items():
        rows = (adapters == adapter).nonzero()[:, 0]
        added = (x[rows].float() @ down.float().T) @ up.float() * table.scales[adapter, part]
        for first, count, of_part, column in table.segments.tolist():
            if of_part == part:
                y[rows, first : first + count] += added[:, column : column + count]


class CudaLora:
    """There are no kernels yet: refused at the start of an engine, so that no step comes here."""

    def lora_add_(self, y: Tensor, x: Tensor, adapters: Tensor, table: LoraTable) -> None:
        raise OpsUnavailable("LoRA adapters have no CUDA kernels yet: take EngineOptions.device='cpu'")

    def finish_linear(
        self,
        y: Tensor,
        bias: Tensor | None,
        out_features: int,
        *,
        act: int,
        gated: bool,
        out_dtype: torch.dtype,
    ) -> Tensor:
        raise OpsUnavailable("LoRA adapters have no CUDA kernels yet: take EngineOptions.device='cpu'")
