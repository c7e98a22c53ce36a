"""Weights of 4 and 8 bits on the CPU: packing, products and lookups, mixed into `CpuOps`.

Like every op there, each method allocates its output and calls one native function that checks shapes and types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from octavo_engine.ops import Activation, Activations, QuantizedLinear, QuantizedWeight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QuantizedOps"]


class _Memory(Protocol):
    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...


class QuantizedOps:
    """What `CpuOps` does with a QuantizedLinear; see `octavo_engine.ops.Ops` for the contracts."""

    _memory: _Memory

    def _bind_quantized(self, library: Any) -> None:
        self._pack_quantized = library.pack_quantized
        self._unpack_quantized = library.unpack_quantized
        self._quantized_panel_bytes = library.quantized_panel_bytes
        self._embedding_quantized = library.embedding_quantized
        self._quantized_linear = library.quantized_linear
        self._quantized_linear_add = library.quantized_linear_add

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
        panels = (n + 31) // 32
        data = self._memory.empty((panels, self._quantized_panel_bytes(n, k, bits, group_size, symmetric)), torch.uint8)
        offsets = None if weight.offsets is None else weight.offsets.contiguous()
        self._pack_quantized(
            data, weight.codes.contiguous(), weight.scales.contiguous(), offsets, bits, group_size, gated
        )
        return QuantizedLinear(data, n, k, bits, group_size, symmetric, activations, gated, threshold)

    def unpack_quantized(self, packed: QuantizedLinear) -> QuantizedWeight:
        n, k, group_size = packed.out_features, packed.in_features, packed.group_size
        groups = (k + group_size - 1) // group_size if group_size else 1
        dtype = torch.float16 if group_size else torch.float32
        codes, scales = torch.empty(n, k, dtype=torch.uint8), torch.empty(n, groups, dtype=dtype)
        offsets = None if packed.symmetric else torch.empty(n, groups, dtype=dtype)
        self._unpack_quantized(packed.data, codes, scales, offsets, packed.bits, group_size, packed.gated)
        return QuantizedWeight(codes, scales, offsets, packed.bits, group_size)

    def _lookup_quantized(self, out: Tensor, ids: Tensor, table: QuantizedLinear, scale: float) -> None:
        """out [T, K] float32 = rows `ids` of the weight, times scale."""
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

    def _multiply_quantized(
        self, out: Tensor, x: Tensor, weight: QuantizedLinear, bias: Tensor | None, act: Activation
    ) -> None:
        """out [T, N or N/2] = act(x @ weight.T + bias)."""
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
        )

    def _multiply_quantized_add(
        self, residual: Tensor, x: Tensor, weight: QuantizedLinear, bias: Tensor | None
    ) -> None:
        """residual [T, N] += x @ weight.T + bias."""
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
        )
