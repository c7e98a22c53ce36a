"""Attention on CUDA (csrc/cuda): the paged cache's writes, reads and copies.

What a row comes to, to the bit, depends on its sequence alone, not on the batch, nor on how the sequence was cut into
chunks, nor on the number of SMs: the decode and the prefill kernel, and a key range split or not, give the same bits
(csrc/cuda/attention.cuh says how). Which of them takes a row is a matter of speed. The kernel for float32 and for other
head sizes has an order of its own, which is likewise the row's alone: the choice looks at dtypes and the head size.
Bits differ between architectures, and from the CPU backend's.

Within a step the tensor core kernels read a work list that one small kernel makes from query_start and seq_lens on the
device, so a captured graph serves any lengths. It is made at the first layer and kept for those with as many heads and
the same window: until the tensors are other objects or a layer comes round again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["CudaAttention"]

_PARTIAL_BYTES = 64 << 20
_DECODE_ROWS = 16  # csrc/cuda/attention.h, as the sizes of lists below
_PREFILL_ROWS = 128
_ITEM_WORDS = 12
_CUT_ITEMS = 8  # of a CTA: for two of equal keys each, ends and unlike lengths
_EMULATED_SMS = 2


@dataclass
class _Plan:
    """Work lists of one step and, as long as graphs may replay them, their memory."""

    counts: Tensor
    decode: Tensor
    prefill: Tensor
    inputs: tuple[Tensor, Tensor]
    served: set[int] = field(default_factory=set)  # the layers' caches


@dataclass
class _Scratch:
    """What the kernels of one head size and dtype leave between their CTAs. Steps follow each other on one stream."""

    arrivals: Tensor
    partials: Tensor
    totals: Tensor
    decode_grid: int


class CudaAttention:
    """Mixin of CudaOps: rope_and_cache, paged_attention and copy_pages of `octavo_engine.ops.Ops`.

    Of an 8-bit cache both ops take all columns of qkv, (Hq + 2 Hkv) * D of them, for its shape does not tell D. Page
    numbers and slots are not looked at on the host; a row with a negative slot writes nothing, a sequence of length 0
    gives zeros.
    """

    device: torch.device

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def _bind_attention(self, library: Any) -> None:
        self._rope_and_cache = library.rope_and_cache
        self._copy_pages = library.copy_pages
        self._paged_attention = library.paged_attention
        self._paged_attention_simple = library.paged_attention_simple
        self._plan_attention = library.plan_attention
        self._attention_ctas = library.attention_ctas
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._scratch: dict[tuple[object, ...], _Scratch | None] = {}

    def rope_and_cache(
        self,
        qkv: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
        cos_sin: Tensor | None,
        *,
        num_heads: int,
        interleaved: bool = False,
    ) -> None:
        self._rope_and_cache(qkv, keys, values, slots, positions, cos_sin, num_heads, interleaved)

    def paged_attention(
        self,
        qkv: Tensor,
        keys: Tensor,
        values: Tensor,
        page_table: Tensor,
        query_start: Tensor,
        seq_lens: Tensor,
        *,
        num_heads: int,
        scale: float,
        sliding_window: int = 0,
        alibi_slopes: Tensor | None = None,
        softcap: float = 0.0,
    ) -> Tensor:
        num_kv_heads = keys.shape[1]
        head_dim = keys.shape[3] if keys.ndim == 4 else qkv.shape[1] // (num_heads + 2 * num_kv_heads)
        out = self._empty((qkv.shape[0], num_heads * head_dim), qkv.dtype)
        inputs = (out, qkv, keys, values, page_table, query_start, seq_lens)
        options = (num_heads, scale, sliding_window, alibi_slopes, softcap)
        scratch = self._scratch_for(qkv, keys, num_kv_heads, head_dim)
        if scratch is None:
            self._paged_attention_simple(*inputs, *options)
            return out
        tokens = qkv.shape[0]
        plan = self._plan_for(query_start, seq_lens, keys, tokens, num_heads, sliding_window, scratch)
        self._paged_attention(
            *inputs,
            *options,
            plan.counts,
            plan.decode,
            plan.prefill,
            scratch.arrivals,
            scratch.partials,
            scratch.totals,
            scratch.decode_grid,
            tokens > seq_lens.shape[0],
        )
        return out

    def copy_pages(self, keys: Tensor, values: Tensor, src: Tensor, dst: Tensor) -> None:
        self._copy_pages(keys, values, src, dst)

    def _scratch_for(self, qkv: Tensor, keys: Tensor, num_kv_heads: int, head_dim: int) -> _Scratch | None:
        """None where the simple kernel answers."""
        key = (qkv.dtype, keys.dtype, num_kv_heads, head_dim)
        if key not in self._scratch:
            decode, prefill = divmod(int(self._attention_ctas(qkv, keys, head_dim)), 256)
            if not decode:
                self._scratch[key] = None
                return None
            sms = _EMULATED_SMS
            if self.device.type == "cuda":
                sms = torch.cuda.get_device_properties(self.device).multi_processor_count
            slots = _PARTIAL_BYTES // ((head_dim + 2) * 4) if self.device.type == "cuda" else 512 * num_kv_heads
            self._scratch[key] = _Scratch(
                self._empty((slots,), torch.int32),
                self._empty((slots, head_dim + 2), torch.float32),
                self._empty((sms * prefill, _PREFILL_ROWS, head_dim), torch.float32),
                sms * decode,
            )
        return self._scratch[key]

    def _plan_for(
        self,
        query_start: Tensor,
        seq_lens: Tensor,
        keys: Tensor,
        tokens: int,
        num_heads: int,
        sliding_window: int,
        scratch: _Scratch,
    ) -> _Plan:
        """The step's work lists. Memory of a size is kept for good: a captured graph may write to it."""
        num_kv_heads, num_seqs = keys.shape[1], seq_lens.shape[0]
        most_tokens, most_seqs = (1 << (n - 1).bit_length() for n in (tokens, num_seqs))  # or sizes would never end
        key = (most_tokens, most_seqs, num_heads, num_kv_heads, sliding_window, id(scratch))
        layer, inputs = keys.data_ptr(), (query_start, seq_lens)
        plan = self._plans.get(key)
        if plan is not None and layer not in plan.served and all(map(_is, plan.inputs, inputs)):
            plan.served.add(layer)
            return plan
        if plan is None:
            group = num_heads // num_kv_heads
            decode = most_tokens * group // _DECODE_ROWS + 5 * most_seqs + _CUT_ITEMS * scratch.decode_grid
            prefill = most_tokens * group // _PREFILL_ROWS + most_seqs
            plan = self._plans[key] = _Plan(
                self._empty((2,), torch.int32),
                self._empty((decode, _ITEM_WORDS), torch.int32),
                self._empty((prefill, 2), torch.int32),
                inputs,
            )
        plan.inputs, plan.served = inputs, {layer}
        self._plan_attention(
            plan.counts,
            plan.decode,
            plan.prefill,
            scratch.arrivals,
            query_start,
            seq_lens,
            tokens,
            num_heads,
            num_kv_heads,
            sliding_window,
            scratch.decode_grid,
            tokens <= num_seqs,  # one token each, as a rule: the prefill kernel is not launched
        )
        return plan


def _is(a: object, b: object) -> bool:
    return a is b
