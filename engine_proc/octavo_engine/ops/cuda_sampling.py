"""Token choice and log-probabilities on CUDA (csrc/cuda/sampling.cu): no sort, the CPU's draws to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CudaSampling"]


class CudaSampling:
    """The mixin of `CudaOps` for sampling. `_bind_sampling` comes first."""

    if TYPE_CHECKING:

        def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...

    def _bind_sampling(self, library: Any) -> None:
        self._sample = library.sample
        self._logprobs = library.logprobs
        self._sample_workspace: int = library.sample_workspace()

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
        adjust_start: Tensor,
        adjust_ids: Tensor,
        adjust_scale: Tensor,
        adjust_add: Tensor,
        mask: Tensor | None,
        mask_rows: Tensor | None,
    ) -> Tensor:
        """As Ops.sample; a vocabulary of at most 2^22. Ids of adjustments beyond the vocabulary are passed over."""
        rows = logits.shape[0]
        out = self._empty((rows,), torch.int32)
        adjusted = mask is not None or adjust_ids.shape[0] > 0
        self._sample(
            out,
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            positions,
            adjust_start,
            adjust_ids,
            adjust_scale,
            adjust_add,
            mask,
            mask_rows,
            self._empty((rows * self._sample_workspace,), torch.uint8),
            self._empty(logits.shape, torch.float32) if adjusted else None,
        )
        return out

    def logprobs(self, logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As Ops.logprobs; top at most 2048."""
        rows = logits.shape[0]
        chosen = self._empty((rows,), torch.float32)
        rank = self._empty((rows,), torch.int32)
        top_ids = self._empty((rows, top), torch.int32)
        top_logprobs = self._empty((rows, top), torch.float32)
        workspace = self._empty((rows * self._sample_workspace,), torch.uint8)
        self._logprobs(chosen, rank, top_ids, top_logprobs, logits, tokens, workspace)
        return chosen, rank, top_ids, top_logprobs
