"""What single families of models need on CUDA: norms of queries and keys and behind a block, caps, clips, gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CudaFamilies"]


class CudaFamilies:
    """The mixin of `CudaOps` for csrc/cuda/head_norm.cu and elementwise.cu. `_bind_families` comes first."""

    def _bind_families(self, library: Any) -> None:
        self._rms_norm_add = library.rms_norm_add
        self._head_norm = library.head_norm
        self._softcap = library.softcap
        self._clip = library.clip
        self._scale_rows = library.scale_rows
        self._gated_add = library.gated_add

    def rms_norm_add_(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
        self._rms_norm_add(residual, x, weight, eps)

    def head_norm_(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        *,
        size: int,
        start: int = 0,
        centred: bool = False,
    ) -> None:
        self._head_norm(x, weight, bias, eps, size, start, centred)

    def softcap_(self, x: Tensor, cap: float) -> None:
        self._softcap(x, cap)

    def clip_(self, x: Tensor, limit: float) -> None:
        self._clip(x, limit)

    def scale_rows_(self, x: Tensor, positions: Tensor, table: Tensor, *, width: int) -> None:
        self._scale_rows(x, positions, table, width)

    def gated_add_(self, residual: Tensor, x: Tensor, gate: Tensor) -> None:
        self._gated_add(residual, x, gate)
