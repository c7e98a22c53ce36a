"""Dense ops on CUDA: embeddings, casts, norms, and products of float weights.

A packed float weight is the weight itself, [N, K], a gated one [gate; up] as stacked. Its products go through cuBLAS by
torch, with our kernel behind them for what is not a product; with `invariant`, through our own (csrc/cuda/linear.h): a
row of its results does not depend on the other rows (law 6), where cuBLAS picks another algorithm for another batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops import Activation, LinearWeight, PackedLinear, QuantizedLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CudaDense"]


class CudaDense:
    """The mixin of `CudaOps` for dense ops. `_bind_dense` comes first."""

    if TYPE_CHECKING:
        device: torch.device
        isa: str

        def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...
        def _in_floats(self, x: Tensor, weight: LinearWeight) -> LinearWeight: ...
        def _lookup_quantized(self, out: Tensor, ids: Tensor, table: QuantizedLinear, scale: float) -> None: ...
        def _multiply_quantized(
            self, out: Tensor, x: Tensor, weight: QuantizedLinear, bias: Tensor | None, act: Activation
        ) -> None: ...
        def _multiply_quantized_add(
            self, residual: Tensor, x: Tensor, weight: QuantizedLinear, bias: Tensor | None
        ) -> None: ...

    def _bind_dense(self, library: Any, *, invariant: bool = False) -> None:
        self.invariant = invariant
        # Emulated kernels work on the host's tensors, where torch has no product of 16-bit types with float32 results.
        self._host_products = self.device.type == "cpu"
        if not self._host_products:
            # The contract: products of what is given, sums in float32, also where cuBLAS splits K. Images of torch come
            # with TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which rounds float32 to 10 bits.
            torch.set_float32_matmul_precision("highest")
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self._cast = library.cast
        self._embedding = library.embedding
        self._embedding_add = library.embedding_add
        self._rms_norm = library.rms_norm
        self._layer_norm = library.layer_norm
        self._add_rms_norm = library.add_rms_norm
        self._add_layer_norm = library.add_layer_norm
        self._linear_epilogue = library.linear_epilogue
        self._linear = library.linear

    # ---- weights -------------------------------------------------------------------------------------------
    def pack_linear(self, weight: Tensor, *, gated: bool = False) -> PackedLinear:
        n, k = weight.shape
        if gated and n % 2:
            raise ValueError(f"a gated weight has {n} rows; it must be even")
        return PackedLinear(weight.to(self.device).contiguous(), n, k, gated)

    def unpack_linear(self, packed: PackedLinear) -> Tensor:
        return packed.data

    # ---- embeddings and casts ------------------------------------------------------------------------------
    def embedding(self, ids: Tensor, table: Tensor | LinearWeight, scale: float = 1.0) -> Tensor:
        if isinstance(table, QuantizedLinear):
            out = self._empty((ids.shape[0], table.in_features), torch.float32)
            self._lookup_quantized(out, ids, table, scale)
            return out
        if isinstance(table, PackedLinear):
            if table.gated:
                raise ValueError("an embedding can't be read from a gated weight")
            table = table.data
        out = self._empty((ids.shape[0], table.shape[1]), torch.float32)
        self._embedding(out, ids, table, scale)
        return out

    def embedding_add_(self, residual: Tensor, ids: Tensor, table: Tensor, scale: float = 1.0) -> None:
        self._embedding_add(residual, ids, table, scale)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        out = self._empty(x.shape, dtype)
        self._cast(out, x)
        return out

    # ---- products ------------------------------------------------------------------------------------------
    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        act: Activation = Activation.NONE,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        weight = self._in_floats(x, weight)
        n, dtype = weight.out_features, out_dtype or x.dtype
        shape = (x.shape[0], n // 2 if weight.gated else n)
        if isinstance(weight, QuantizedLinear):
            out = self._empty(shape, dtype)
            self._multiply_quantized(out, x, weight, bias, act)
            return out
        if self.invariant:
            out = self._empty(shape, dtype)
            self._linear(out, x, weight.data, bias, int(act), weight.gated, False, False)
            return out
        if not weight.gated:
            out = self._product(x, weight.data, dtype)
            if bias is not None or act != Activation.NONE:
                self._linear_epilogue(out, out, bias, int(act), False, False)
            return out
        out = self._empty(shape, dtype)
        self._linear_epilogue(out, self._product(x, weight.data, x.dtype), bias, int(act), True, False)
        return out

    def linear_add_(self, residual: Tensor, x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> None:
        weight = self._in_floats(x, weight)
        if isinstance(weight, QuantizedLinear):
            self._multiply_quantized_add(residual, x, weight, bias)
        elif self.invariant:
            self._linear(residual, x, weight.data, bias, int(Activation.NONE), False, True, False)
        else:
            y = self._product(x, weight.data, torch.float32)
            self._linear_epilogue(residual, y, bias, int(Activation.NONE), False, True)

    def _product(self, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """x @ weight.T by cuBLAS, rounded once to `dtype`: x's own or float32."""
        if x.dtype != weight.dtype:
            raise TypeError(f"x is {x.dtype}; a {weight.dtype} weight takes {weight.dtype}")
        if self._host_products:
            return (x.float() @ weight.float().t()).to(dtype)
        if dtype == x.dtype:
            return torch.mm(x, weight.t())
        return torch.mm(x, weight.t(), out_dtype=dtype)

    # ---- norms ---------------------------------------------------------------------------------------------
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
        out = self._empty(x.shape, out_dtype)
        self._rms_norm(out, x, weight, eps)
        return out

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
    ) -> Tensor:
        out = self._empty(x.shape, out_dtype)
        self._layer_norm(out, x, weight, bias, eps)
        return out

    def add_rms_norm(
        self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype
    ) -> Tensor:
        """residual [T, H] float32 += delta [T, H] of any float type, then rms_norm of it, in one kernel."""
        out = self._empty(residual.shape, out_dtype)
        self._add_rms_norm(out, residual, delta, weight, eps)
        return out

    def add_layer_norm(
        self,
        residual: Tensor,
        delta: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        out_dtype: torch.dtype,
    ) -> Tensor:
        """residual [T, H] float32 += delta [T, H] of any float type, then layer_norm of it, in one kernel."""
        out = self._empty(residual.shape, out_dtype)
        self._add_layer_norm(out, residual, delta, weight, bias, eps)
        return out
