"""Every op in plain torch: float32 inside, one sequence and one row at a time, no cleverness.

It shares the packed layouts with the native backends, so tests compare like with like and a whole model can run
on it. It says what an op means; it keeps law 6 only as far as torch's matrix products do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.ops import (
    Activation,
    Activations,
    KeptRows,
    KVLayout,
    LinearWeight,
    PackedLinear,
    Progress,
    QuantizedLinear,
    QuantizedWeight,
    TensorSpec,
    cpu_cache,
    reference_quantized,
    reference_rounding,
)
from octavo_engine.ops.lora import LoraTable, panel_table, reference_lora_add
from octavo_engine.ops.reference_cache import read_pages, write_slots

__all__ = ["ReferenceOps", "pack_width", "philox4x32"]


def pack_width(dtype: torch.dtype) -> int:
    """p of the packed layouts: elements of the reduced dimension that lie side by side."""
    return 2 if dtype == torch.bfloat16 else 1


def philox4x32(key: int, counter: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of a 64-bit key and a 128-bit counter, least significant word first (Salmon et al., SC 2011)."""
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    c0, c1, c2, c3 = ((counter >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96))
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _activate(x: Tensor, act: Activation) -> Tensor:
    match act:
        case Activation.NONE:
            return x
        case Activation.RELU:
            return F.relu(x)
        case Activation.GELU:
            return F.gelu(x)
        case Activation.GELU_TANH:
            return F.gelu(x, approximate="tanh")
        case Activation.SILU:
            return F.silu(x)
    raise ValueError(f"unknown activation {act!r}; known: {', '.join(a.name for a in Activation)}")


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [T, heads, R] float32; cos, sin [T, 1, R/2]."""
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _weights(row: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """2^((row - best) log2(e) / temperature) in [2^-64, 1], in the float32 roundings that Ops.sample names."""
    limits = torch.finfo(torch.float32)
    slope = (torch.tensor(1.44269504) / temperature).clamp(limits.tiny, limits.max)
    t = ((row - best.clamp(max=limits.max)) * slope).nan_to_num(nan=-64.0).clamp(-64.0, 0.0)
    n = t.round()
    p = torch.full_like(t, 1.32647273e-3)
    for coefficient in (9.67151299e-3, 5.55073358e-2, 0.240222424, 0.693147004, 1.0):
        p = p * (t - n) + coefficient
    return torch.ldexp(p, n)


class ReferenceOps:
    """`Ops` in plain torch on the CPU; see `octavo_engine.ops.Ops` for every contract."""

    name = "reference"
    asynchronous = False
    isa = "torch"
    device = torch.device("cpu")

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if weights == torch.bfloat16 else torch.float32

    def record(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        kept: KeptRows | None = None,
    ) -> Callable[..., Tensor]:
        if kept is None:
            return function
        return lambda *tensors: function(*tensors[: len(inputs)]).index_select(0, tensors[len(inputs)])

    def capture(
        self, work: Callable[[int], Tensor], most: int, progress: Progress | None = None
    ) -> Callable[[int], Tensor]:
        return work

    # ---- weights -------------------------------------------------------------------------------------------
    def pack_linear(self, weight: Tensor, *, gated: bool = False) -> PackedLinear:
        n, k = weight.shape
        p = pack_width(weight.dtype)
        if gated:
            if n % 2:
                raise ValueError(f"a gated weight stacks gate and up, so its rows are even; got {n}")
            halves = F.pad(weight.view(2, n // 2, k), (0, -k % p, 0, -(n // 2) % 16))
            rows = halves.view(2, -1, 16, k + -k % p).transpose(0, 1)  # [panels, 2, 16, K]
        else:
            rows = F.pad(weight, (0, -k % p, 0, -n % 32))
        panels = rows.reshape(-1, 32, (k + -k % p) // p, p)
        return PackedLinear(panels.transpose(1, 2).contiguous(), n, k, gated)

    def unpack_linear(self, packed: PackedLinear) -> Tensor:
        rows = packed.data.transpose(1, 2).flatten(2)[..., : packed.in_features]  # [panels, 32, K]
        if not packed.gated:
            return rows.reshape(-1, packed.in_features)[: packed.out_features].contiguous()
        halves = rows.view(-1, 2, 16, packed.in_features).transpose(0, 1).reshape(2, -1, packed.in_features)
        return halves[:, : packed.out_features // 2].reshape(packed.out_features, packed.in_features)

    def pack_quantized(
        self, weight: QuantizedWeight, activations: Activations, *, gated: bool = False, threshold: float = 6.0
    ) -> QuantizedLinear:
        return reference_quantized.pack_quantized(weight, activations, gated=gated, threshold=threshold)

    def unpack_quantized(self, packed: QuantizedLinear) -> QuantizedWeight:
        return reference_quantized.unpack_quantized(packed)

    def quantize(self, weights: Sequence[Tensor], *, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
        return reference_rounding.quantize(weights, bits=bits, group_size=group_size, symmetric=symmetric)

    def weight_memory(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    # ---- dense ---------------------------------------------------------------------------------------------
    def embedding(self, ids: Tensor, table: Tensor | LinearWeight, scale: float = 1.0) -> Tensor:
        if not isinstance(table, Tensor) and table.gated:
            raise ValueError("an embedding can't be read from a gated weight: its rows are interleaved")
        if isinstance(table, PackedLinear):
            table = self.unpack_linear(table)
        elif isinstance(table, QuantizedLinear):
            table = reference_quantized.dequantize(self.unpack_quantized(table))
        return table[ids.long()].float() * scale

    def embedding_add_(self, residual: Tensor, ids: Tensor, table: Tensor, scale: float = 1.0) -> None:
        residual += self.embedding(ids, table, scale)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        act: Activation = Activation.NONE,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        if isinstance(weight, QuantizedLinear):
            y = reference_quantized.product(x, weight)
            y = y if bias is None else y + bias
        else:
            y = F.linear(x.float(), self.unpack_linear(weight).float(), bias)
        if weight.gated:
            gate, up = y.chunk(2, dim=-1)
            y = _activate(gate, act) * up
        else:
            y = _activate(y, act)
        return y.float().to(out_dtype or x.dtype)

    def linear_add_(self, residual: Tensor, x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> None:
        residual += self.linear(x, weight, bias, out_dtype=torch.float32)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(out_dtype)

    def layer_norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype
    ) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(out_dtype)

    def rms_norm_add_(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
        residual += self.rms_norm(x, weight, eps, torch.float32)

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
        p, chosen = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
        p, chosen = p[:, :top_k], chosen[:, :top_k]
        if renormalise:
            p = p / p.sum(-1, keepdim=True)
        # A product of the whole stack, of which each expert's own rows are kept.
        width, size = up.out_features // experts // 2, down.out_features // experts
        inner = self.linear(x, up, act=act).view(-1, experts, width)
        parts = torch.zeros(*chosen.shape, size)
        for expert in range(experts):
            tokens, ranks = (chosen == expert).nonzero(as_tuple=True)
            every = self.linear(inner[tokens, expert], down, out_dtype=torch.float32)
            parts[tokens, ranks] = every.view(-1, experts, size)[:, expert]
        for rank in range(top_k):
            residual += p[:, rank : rank + 1] * parts[:, rank]

    def softcap_(self, x: Tensor, cap: float) -> None:
        x.copy_(cap * torch.tanh(x / cap))

    def gated_add_(self, residual: Tensor, x: Tensor, gate: Tensor) -> None:
        residual += torch.sigmoid(gate) * x

    def lora_table(
        self, weight: LinearWeight, sizes: Sequence[int], *, adapters: int, rank: int, dtype: torch.dtype
    ) -> LoraTable:
        return panel_table(weight, sizes, adapters)

    def lora_add_(self, y: Tensor, x: Tensor, adapters: Tensor, table: LoraTable) -> None:
        reference_lora_add(y, x, adapters, table)

    def finish_linear(
        self, y: Tensor, bias: Tensor | None, weight: LinearWeight, *, act: Activation, out_dtype: torch.dtype
    ) -> Tensor:
        out_features, gated = weight.out_features, weight.gated
        if gated:
            y = y.view(len(y), -1, 2, 16).transpose(1, 2).reshape(len(y), 2, -1)[..., : out_features // 2].flatten(1)
        y = y[:, :out_features] if bias is None else y[:, :out_features] + bias
        if gated:
            gate, up = y.chunk(2, dim=-1)
            return (_activate(gate, act) * up).to(out_dtype)
        return _activate(y, act).to(out_dtype)

    # ---- the cache -----------------------------------------------------------------------------------------
    def page_bytes(self, layout: KVLayout) -> int:
        return cpu_cache.page_bytes(layout)

    def empty_cache(self, layout: KVLayout) -> tuple[Tensor, Tensor]:
        return cpu_cache.empty_cache(layout)

    # ---- attention -----------------------------------------------------------------------------------------
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
        columns = x[:, start : start + len(weight)]
        groups = columns.float().reshape(len(x), -1, size)
        if centred:
            groups = groups - groups.mean(-1, keepdim=True)
        normed = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)).flatten(1) * weight
        columns.copy_(normed if bias is None else normed + bias)

    def clip_(self, x: Tensor, limit: float) -> None:
        x.clamp_(-limit, limit)

    def scale_rows_(self, x: Tensor, positions: Tensor, table: Tensor, *, width: int) -> None:
        x[:, :width] = (x[:, :width].float() * table[positions.long()].unsqueeze(1)).to(x.dtype)

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
        num_kv_heads, head_dim = keys.shape[1], values.shape[3]
        heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
        if cos_sin is not None:
            rotated = heads[:, : num_heads + num_kv_heads, : cos_sin.shape[1]]
            cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
            rotated.copy_(_rotate(rotated.float(), cos, sin, interleaved))
        k, v = heads[:, num_heads:].chunk(2, dim=1)  # [T, Hkv, D] each
        write_slots(keys, values, k, v, slots)

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
        num_kv_heads, page_size, head_dim = keys.shape[1], keys.shape[3], values.shape[3]
        out = torch.zeros(len(qkv), num_heads * head_dim, dtype=qkv.dtype)
        for s, length in enumerate(seq_lens.tolist()):
            start, end = int(query_start[s]), int(query_start[s + 1])
            if start == end:
                continue
            pages = page_table[s, : -(-length // page_size)].long()
            group = num_heads // num_kv_heads
            k, v = (x[:, :length].repeat_interleave(group, 0) for x in read_pages(keys, values, pages))
            q = qkv[start:end, : num_heads * head_dim].float().reshape(-1, num_heads, head_dim).transpose(0, 1)
            scores = q @ k.mT * scale  # [Hq, queries, length]
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            i = torch.arange(length - (end - start), length).unsqueeze(1)
            j = torch.arange(length)
            if alibi_slopes is not None and alibi_slopes.dtype == torch.bfloat16:
                scores = scores + scale * (alibi_slopes.view(-1, 1, 1) * j.bfloat16()).float()
            elif alibi_slopes is not None:
                scores = scores + alibi_slopes.view(-1, 1, 1) * (j - i)
            seen = j <= i
            if sliding_window:
                seen &= i - j < sliding_window
            probabilities = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            out[start:end] = (probabilities @ v).transpose(0, 1).flatten(1).to(out.dtype)
        return out

    def copy_pages(self, keys: Tensor, values: Tensor, src: Tensor, dst: Tensor) -> None:
        for cache in (keys, values):
            cache[:, dst.long()] = cache[:, src.long()]

    # ---- sampling ------------------------------------------------------------------------------------------
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
        tokens = []
        for r in range(len(logits)):
            row = logits[r].clone()
            entries = slice(int(adjust_start[r]), int(adjust_start[r + 1]))
            ids, scale = adjust_ids[entries].long(), adjust_scale[entries]
            row[ids] = torch.where(row[ids] > 0, row[ids] / scale, row[ids] * scale) + adjust_add[entries]
            if mask is not None and mask_rows is not None and mask_rows[r] >= 0:
                i = torch.arange(len(row))
                row[(mask[mask_rows[r]][i // 32] >> (i % 32) & 1) == 0] = float("-inf")
            tokens.append(
                self._draw(
                    row.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf")),
                    temperature[r],
                    int(top_k[r]),
                    float(top_p[r]),
                    float(min_p[r]),
                    philox4x32(int(seeds[r]), int(positions[r])),
                )
            )
        return torch.tensor(tokens, dtype=torch.int32)

    @staticmethod
    def _draw(row: Tensor, temperature: Tensor, top_k: int, top_p: float, min_p: float, words: tuple[int, ...]) -> int:
        best = row.max()
        if best == float("-inf"):
            return -1
        if temperature == 0:
            return int((row == best).nonzero()[0])
        weights = _weights(row, best, temperature)
        masses = (weights.double() * 2.0**40).round().long()  # whole numbers from here on, so that all backends agree
        kept = weights >= min(min_p, 1.0)
        order = row.sort(descending=True, stable=True).indices  # by falling logit, then id
        order = order[kept[order]]
        if top_k > 0:
            order = order[:top_k]
        if top_p < 1:
            mass = masses[order].cumsum(0)
            need = math.ceil(Fraction(top_p) * int(mass[-1]))
            order = order[: int((mass < need).sum()) + 1]
        running = torch.zeros_like(masses).index_copy(0, order, masses[order]).cumsum(0)
        target = (words[0] << 32 | words[1]) * int(running[-1]) >> 64
        return int((running <= target).sum())

    def logprobs(self, logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_softmax = logits.log_softmax(-1)
        chosen = logits.gather(1, tokens.long().unsqueeze(1))
        rank = 1 + (logits > chosen).sum(-1, dtype=torch.int32)
        order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :top]
        logprob = log_softmax.gather(1, tokens.long().unsqueeze(1)).squeeze(1)
        return logprob, rank, order.int(), log_softmax.gather(1, order)
