"""int4, int8 and LLM.int8(): float weights rounded to the nearest code at load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from octavo_engine.ops import Activations
from octavo_engine.quant.scheme import NotQuantizable

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops
    from octavo_engine.quant.scheme import Reader

__all__ = ["FloatPart", "RoundedScheme"]


@dataclass(frozen=True)
class FloatPart:
    """A float weight [N, K], its rows perhaps strided, and the published tensor that it comes from, for errors."""

    name: str
    value: Tensor


class RoundedScheme:
    """Round to nearest, groups of `group_size` along K with float16 scales, or (0) a float32 scale an output channel.

    How scales are chosen is `Ops.quantize`'s; nothing is calibrated, so any float checkpoint will do. What it costs,
    tests/bench/quality.py measures: int8 0.9 %, int4 0.8 % of SmolLM2-135M's perplexity. In 4 bits that model's tied
    head costs 8 % by itself, in 8 bits under 0.5 %, hence the default of `Quantization.lm_head`; its file holds
    asymmetric groups of 32 already, so the layers' own loss in that form is no measure.
    """

    def __init__(
        self,
        name: str,
        *,
        bits: int,
        group_size: int = 0,
        symmetric: bool = True,
        activations: Activations = Activations.INT8,
        threshold: float = 6.0,
    ) -> None:
        self.name, self.bits, self.group_size, self.symmetric = name, bits, group_size, symmetric
        self.activations, self.threshold = activations, threshold

    def read(self, reader: Reader, name: str, out_features: int, in_features: int, *, transposed: bool) -> FloatPart:
        """As stored: what a file holds in 4 or 8 bits comes as the floats that it stands for."""
        shape = (in_features, out_features) if transposed else (out_features, in_features)
        value = reader.tensor(f"{name}.weight", *shape)
        return FloatPart(f"{reader.prefix}{name}.weight", value.t() if transposed else value)

    def pack(self, ops: Ops, parts: list[FloatPart], *, gated: bool) -> LinearWeight:
        """Raises NotQuantizable."""
        weight = ops.quantize(
            [part.value for part in parts], bits=self.bits, group_size=self.group_size, symmetric=self.symmetric
        )
        good = weight.scales.isfinite().all(dim=1)
        if weight.offsets is not None:
            good &= weight.offsets.isfinite().all(dim=1)
        if not good.all():
            row = int((~good).nonzero()[0])
            for part in parts:
                if row < part.value.shape[0]:
                    raise NotQuantizable(self._explain(part, row))
                row -= part.value.shape[0]
        return ops.pack_quantized(weight, self.activations, gated=gated, threshold=self.threshold)

    def _explain(self, part: FloatPart, row: int) -> str:
        values = part.value[row].float()
        if not values.isfinite().all():
            count = int((~values.isfinite()).sum())
            return f"tensor {part.name}: row {row} has {count} infinite or NaN values; {self.name} can't hold it"
        return (
            f"tensor {part.name}: row {row} reaches {float(values.abs().max()):.3g}, more than {self.name}'s float16 "
            "scales can hold; use quantization='int8' or 'none'"
        )
