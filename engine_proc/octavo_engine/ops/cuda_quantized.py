"""Weights of 4 and 8 bits on CUDA: packing, products and lookups, mixed into `CudaOps`.

On CUDA `QuantizedLinear.data` is [tiles of 16 outputs, bytes of a tile] uint8, in the order in which tensor cores take
their operands; csrc/cuda/quantized.h draws it. One layout serves all of `Activations`, and x of any float type. A row's
result is the same to the bit in every batch (law 6), on one architecture; not so where many rows go through cuBLAS, on
the weight in floats, which `invariant` rules out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops import (
    Activation,
    Activations,
    PackedLinear,
    QuantizedLinear,
    QuantizedWeight,
    reference_rounding,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from octavo_engine.ops import LinearWeight

__all__ = ["CudaQuantized"]

_ROWS_FOR_FLOATS = 384
"""Rows from which a weight is turned into floats first: on paper, where cuBLAS gains what that costs. Not measured."""

_ROUNDED_AT_ONCE = 1 << 24
"""Elements of a float weight that `quantize` looks at together: it takes some twenty times their float32 in memory."""


class CudaQuantized:
    """What `CudaOps` does with a QuantizedLinear; see `octavo_engine.ops.Ops` for the contracts."""

    if TYPE_CHECKING:
        device: torch.device
        invariant: bool

        def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...

    def _bind_quantized(self, library: Any) -> None:
        self._pack_quantized = library.pack_quantized
        self._unpack_quantized = library.unpack_quantized
        self._quantized_packed_shape = library.quantized_packed_shape
        self._embedding_quantized = library.embedding_quantized
        self._dequantize = library.dequantize
        self._quantized_linear = library.quantized_linear
        self._quantized_linear_add = library.quantized_linear_add
        # (slice, bytes of scratch, counters) of a product; a model has few shapes, prompts many lengths.
        self._quantized_plan = lru_cache(4096)(lambda *shape: tuple(library.quantized_plan(*shape)))
        self._quantized_slice = 0  # units of 64 of K; 0: by the weight's shape
        self._quantized_counters = torch.zeros(1 << 15, dtype=torch.int32, device=self.device)
        self._outgrown_counters: list[Tensor] = []

    # ---- weights -------------------------------------------------------------------------------------------
    def pack_quantized(
        self, weight: QuantizedWeight, activations: Activations, *, gated: bool = False, threshold: float = 6.0
    ) -> QuantizedLinear:
        n, k = weight.codes.shape
        bits, group_size, symmetric = weight.bits, weight.group_size, weight.offsets is None
        if activations is Activations.LLM_INT8 and (bits, group_size, symmetric) != (8, 0, True):
            raise ValueError(
                f"LLM_INT8 takes 8 bits, group_size 0, symmetric; got {bits} bits, group_size {group_size}, "
                f"{'symmetric' if symmetric else 'asymmetric'}"
            )
        shape = self._quantized_packed_shape(n, k, bits, group_size, symmetric, gated)
        data = self._empty(tuple(shape), torch.uint8)
        codes, scales, offsets = (
            None if t is None else t.to(self.device).contiguous() for t in (weight.codes, weight.scales, weight.offsets)
        )
        self._pack_quantized(data, codes, scales, offsets, bits, group_size, gated)
        return QuantizedLinear(data, n, k, bits, group_size, symmetric, activations, gated, threshold)

    def unpack_quantized(self, packed: QuantizedLinear) -> QuantizedWeight:
        n, k, group_size = packed.out_features, packed.in_features, packed.group_size
        groups = (k + group_size - 1) // group_size if group_size else 1
        dtype = torch.float16 if group_size else torch.float32
        codes, scales = self._empty((n, k), torch.uint8), self._empty((n, groups), dtype)
        offsets = None if packed.symmetric else self._empty((n, groups), dtype)
        self._unpack_quantized(packed.data, codes, scales, offsets, packed.bits, group_size, packed.gated)
        return QuantizedWeight(codes, scales, offsets, packed.bits, group_size)

    def quantize(self, weights: Sequence[Tensor], *, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
        """As the reference, on the device and some rows at a time: a row is rounded by itself."""
        parts: list[QuantizedWeight] = []
        with self.device:
            for weight in weights:
                rows = max(1, _ROUNDED_AT_ONCE // max(1, weight.shape[1]))
                for some in torch.split(weight, rows):
                    moved = [some.to(self.device)]
                    parts.append(
                        reference_rounding.quantize(moved, bits=bits, group_size=group_size, symmetric=symmetric)
                    )
        offsets = [part.offsets for part in parts if part.offsets is not None]
        return QuantizedWeight(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat(offsets) if offsets else None,
            bits,
            group_size,
        )

    # ---- lookups and products ------------------------------------------------------------------------------
    def _lookup_quantized(self, out: Tensor, ids: Tensor, table: QuantizedLinear, scale: float) -> None:
        """out [T, K] float32 = rows `ids` of the weight, times scale; NaN for an id that is no row."""
        if table.gated:
            raise ValueError("an embedding's weight is not gated")
        self._embedding_quantized(
            out,
            ids,
            table.data,
            table.out_features,
            table.in_features,
            table.bits,
            table.group_size,
            table.symmetric,
            scale,
        )

    def _in_floats(self, x: Tensor, weight: LinearWeight) -> LinearWeight:
        """The weight in x's type, rounded, where x has so many rows that this pays; else the weight itself."""
        if (
            not isinstance(weight, QuantizedLinear)
            or weight.activations is not Activations.FLOAT
            or x.shape[0] < _ROWS_FOR_FLOATS
            or x.dtype not in (torch.bfloat16, torch.float16)
            or self.invariant
        ):
            return weight
        data = self._empty((weight.out_features, weight.in_features), x.dtype)
        self._dequantize(data, weight.data, weight.bits, weight.group_size, weight.symmetric, weight.gated)
        return PackedLinear(data, weight.out_features, weight.in_features, weight.gated)

    def _multiply_quantized(
        self, out: Tensor, x: Tensor, weight: QuantizedLinear, bias: Tensor | None, act: Activation
    ) -> None:
        """out [T, N or N/2] of any float type = act(x @ weight.T + bias)."""
        scratch, counters, slice_units = self._quantized_memory(x.shape[0], weight)
        self._quantized_linear(
            out,
            x,
            weight.data,
            bias,
            weight.out_features,
            weight.bits,
            weight.group_size,
            weight.symmetric,
            int(weight.activations),
            weight.threshold,
            int(act),
            weight.gated,
            scratch,
            counters,
            slice_units,
        )

    def _multiply_quantized_add(
        self, residual: Tensor, x: Tensor, weight: QuantizedLinear, bias: Tensor | None
    ) -> None:
        """residual [T, N] float32 += x @ weight.T + bias."""
        scratch, counters, slice_units = self._quantized_memory(x.shape[0], weight)
        self._quantized_linear_add(
            residual,
            x,
            weight.data,
            bias,
            weight.out_features,
            weight.bits,
            weight.group_size,
            weight.symmetric,
            int(weight.activations),
            weight.threshold,
            scratch,
            counters,
            slice_units,
        )

    def _quantized_memory(self, rows: int, weight: QuantizedLinear) -> tuple[Tensor, Tensor, int]:
        """Scratch and counters for a product, and the units of a slice.

        The counters are zero before and after every product, so all that run one after the other share them; a graph
        keeps those that it was captured with.
        """
        slice_units, nbytes, counters = self._quantized_plan(
            rows,
            weight.out_features,
            weight.in_features,
            weight.bits,
            weight.group_size,
            weight.symmetric,
            int(weight.activations),
            weight.gated,
            self._quantized_slice,
        )
        if counters > self._quantized_counters.numel():
            self._outgrown_counters.append(self._quantized_counters)  # graphs go on using them
            self._quantized_counters = torch.zeros(counters, dtype=torch.int32, device=self.device)
        return self._empty((nbytes,), torch.uint8), self._quantized_counters, slice_units
