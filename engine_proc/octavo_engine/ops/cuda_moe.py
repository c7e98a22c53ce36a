"""Mixtures of experts on CUDA: one product with all experts at once for gates and ups and one for downs.

Tokens' places are sorted by expert on the device, so the host learns nothing and waits for nothing, and a graph holds
it all (csrc/cuda/moe.h). Each of a token's products is what it would be alone (law 6), of float weights too: they go
through our own kernels whether the engine is invariant or not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops import Activation, LinearWeight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CudaMoe"]

_PLACES = 1 << 14
"""Tokens times experts each that one pass takes: what lies between its kernels is some 10 kB a place."""


class CudaMoe:
    """The mixin of `CudaOps` for csrc/cuda/moe.h. `_bind_moe` comes first."""

    if TYPE_CHECKING:

        def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...

    def _bind_moe(self, library: Any) -> None:
        self._moe_add = library.moe_add
        # (rows of a block, blocks, bytes of scratch) of a pass
        self._moe_plan = lru_cache(4096)(lambda *shape: tuple(library.moe_plan(*shape)))

    def moe_add_(
        self,
        residual: Tensor,
        x: Tensor,
        scores: Tensor,
        up: LinearWeight,
        down: LinearWeight,
        *,
        experts: int,
        top_k: int,
        renormalise: bool,
        act: Activation,
    ) -> None:
        width, hidden, most = up.out_features // experts // 2, residual.shape[1], max(1, _PLACES // max(1, top_k))
        for at in range(0, x.shape[0], most):
            rows = slice(at, at + most)
            tokens = min(most, x.shape[0] - at)
            places = tokens * top_k
            _, blocks, scratch = self._moe_plan(
                tokens, experts, top_k, x.shape[1], width, up.form[0], up.form[3], down.form[0], down.form[3]
            )
            self._moe_add(
                residual[rows],
                x[rows],
                scores[rows],
                up.data,
                down.data,
                self._empty((places,), torch.int32),
                self._empty((places,), torch.float32),
                self._empty((places,), torch.int32),
                self._empty((blocks, 4), torch.int32),
                self._empty((places, width), x.dtype),
                self._empty((places, hidden), torch.float32),
                self._empty((scratch,), torch.uint8),
                experts,
                top_k,
                renormalise,
                int(act),
                *up.form,
                *down.form,
            )
