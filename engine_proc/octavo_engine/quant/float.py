"""Weights in float32, bfloat16 or float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.ops import Ops, PackedLinear
    from octavo_engine.quant.scheme import Reader

__all__ = ["FloatScheme"]


class FloatScheme:
    """`name.weight` [N, K], rounded to `dtype`."""

    name = "float"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def read(self, reader: Reader, name: str, out_features: int, in_features: int, *, transposed: bool) -> Tensor:
        if transposed:
            return reader.tensor(f"{name}.weight", in_features, out_features, dtype=self.dtype).t()
        return reader.tensor(f"{name}.weight", out_features, in_features, dtype=self.dtype)

    def pack(self, ops: Ops, parts: list[Tensor], *, gated: bool) -> PackedLinear:
        parts = [part.to(ops.device) for part in parts]  # first: the host keeps no copy beside the file's pages
        stacked = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        return ops.pack_linear(stacked, gated=gated)
