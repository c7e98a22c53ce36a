"""`Ops.quantize` on the CPU, mixed into `CpuOps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops import QuantizedWeight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RoundingOps"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class RoundingOps:
    """Float weights to codes, to the bit as `ops.reference_rounding` has it."""

    def _bind_rounding(self, library: Any) -> None:
        self._quantize = library.quantize

    def quantize(self, weights: Sequence[Tensor], *, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
        if (bits, bool(group_size), symmetric) not in ((4, True, True), (4, True, False), (8, False, True)):
            raise ValueError(
                f"rounding to {bits} bits, group_size {group_size}, symmetric {symmetric}: 4 bits take groups of 32, "
                "64 or 128, 8 bits take group_size 0 and are symmetric"
            )
        n, k = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        factors = (n, -(-k // group_size) if group_size else 1)
        kind = torch.float16 if group_size else torch.float32
        codes, scales = torch.empty(n, k, dtype=torch.uint8), torch.empty(factors, dtype=kind)
        offsets = None if symmetric else torch.empty(factors, dtype=kind)
        row = 0
        for weight in weights:
            rows = slice(row, row + weight.shape[0])
            row = rows.stop
            plain = (weight if weight.dtype in _FLOATS else weight.float()).contiguous()
            self._quantize(codes[rows], scales[rows], None if offsets is None else offsets[rows], plain, group_size)
        return QuantizedWeight(codes, scales, offsets, bits, group_size)
