"""`quantization=None`: every layer in the form that its file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo_engine.ops import Activations, QuantizedWeight
from octavo_engine.quant.float import FloatScheme

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops
    from octavo_engine.quant.scheme import Reader

__all__ = ["STORED_ACTIVATIONS", "StoredScheme"]

STORED_ACTIVATIONS = Activations.FLOAT
"""What a weight that its file holds in 4 or 8 bits is multiplied with: 16 bits, so that a file answers as its weights.

Measured on SmolLM2's file (Q4_1, the head Q8_0), perplexity of 8,000 tokens of English against bfloat16 weights of the
same values: FLOAT -0.02 %, INT8 +0.5 %; but with INT8 that model, asked for the capital of France, answers in French
and at length. With FLOAT one stream takes 14 % longer, 64 streams and prefill twice as long.
"""


class StoredScheme:
    """Codes and scales of the file where it has them (GGUF's Q8_0, Q4_0, Q4_1), floats rounded to `dtype` elsewhere.

    Layers that are merged into one (q, k and v; gate and up) run as stored where all of them are stored in one format.
    Where they are not, all of them become floats of `dtype`: a packed weight has one width and one kind of group.
    """

    name = "stored"

    def __init__(self, dtype: torch.dtype, activations: Activations = STORED_ACTIVATIONS) -> None:
        self.dtype, self.activations = dtype, activations
        self._float = FloatScheme(dtype)

    def read(
        self, reader: Reader, name: str, out_features: int, in_features: int, *, transposed: bool
    ) -> Tensor | QuantizedWeight:
        stored = None if transposed else reader.quantized(f"{name}.weight", out_features, in_features)
        if stored is not None:
            return stored
        return self._float.read(reader, name, out_features, in_features, transposed=transposed)

    def pack(self, ops: Ops, parts: list[Tensor | QuantizedWeight], *, gated: bool) -> LinearWeight:
        quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
        if len(quantized) == len(parts) and len({_format(part) for part in quantized}) == 1:
            return ops.pack_quantized(_stacked(quantized), self.activations, gated=gated)
        floats = [_dequantized(part, self.dtype) if isinstance(part, QuantizedWeight) else part for part in parts]
        return self._float.pack(ops, floats, gated=gated)


def _format(weight: QuantizedWeight) -> tuple[int, int, bool]:
    return weight.bits, weight.group_size, weight.offsets is None


def _stacked(parts: list[QuantizedWeight]) -> QuantizedWeight:
    """Of one format, by output rows."""
    first = parts[0]
    if len(parts) == 1:
        return first
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return QuantizedWeight(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(offsets) if offsets else None,
        first.bits,
        first.group_size,
    )


def _dequantized(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """[N, K]: float32 as QuantizedWeight defines it, rounded to dtype."""
    columns = weight.codes.shape[1]
    size = weight.group_size or columns

    def wide(values: Tensor) -> Tensor:
        return values.float().repeat_interleave(size, dim=1)[:, :columns]

    out = weight.codes.float()
    if weight.offsets is None:
        return out.sub_(1 << (weight.bits - 1)).mul_(wide(weight.scales)).to(dtype)
    return out.mul_(wide(weight.scales)).add_(wide(weight.offsets)).to(dtype)
