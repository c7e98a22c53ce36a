"""The typed op list: every native operation of the engine, declared once.

Three implementations answer it: `reference` (plain torch, fp32, no cleverness), `cpu` and `cuda` (libraries
built from csrc/). tests/ops holds each of them to the reference.

Notation: T tokens in the step, S sequences, H hidden size, Hq query heads, Hkv key-value heads, D head size,
V vocabulary, P pages in the cache, B page size (tokens a page).

Types. Three compute types exist. The residual stream is float32 in all of them; what ops hand each other
("activations") is of the type that `Ops.activation_dtype` names:

    weights    activations on the CPU   on CUDA    KV cache (default)
    float32    float32                  float32    float32
    bfloat16   bfloat16                 bfloat16   bfloat16
    float16    float32                  float16    float16

Law 6: an output row of any op here depends only on that row's own inputs and its own sequence, to the bit,
whatever else is in the batch and however the sequence was cut in chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from octavo_engine.ops.types import (
    Activation,
    Activations,
    KeptRows,
    KVLayout,
    LinearWeight,
    OpsUnavailable,
    PackedLinear,
    Progress,
    QuantizedLinear,
    QuantizedWeight,
    TensorSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, device, dtype

    from octavo_engine.ops.lora import LoraTable

__all__ = [
    "Activation",
    "Activations",
    "KVLayout",
    "KeptRows",
    "LinearWeight",
    "Ops",
    "OpsUnavailable",
    "PackedLinear",
    "Progress",
    "QuantizedLinear",
    "QuantizedWeight",
    "TensorSpec",
    "load_ops",
]


class Ops(Protocol):
    """What a backend implements. All tensors live on `device` and are contiguous unless a stride is named.

    Weights are packed from wherever they are: `pack_linear`, `pack_quantized` and `quantize` take tensors of the host
    too, and what they return lies on `device`.
    """

    name: str
    isa: str  # the kernels' instruction set
    device: device
    asynchronous: bool  # ops return before they are done: the host can prepare the next step meanwhile

    def activation_dtype(self, weights: dtype) -> dtype:
        """Of what ops hand each other where the float weights are float32, bfloat16 or float16 (the table above)."""
        ...

    def record(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        kept: KeptRows | None = None,
    ) -> Callable[..., Tensor]:
        """`function`, which calls ops and nothing else, prepared to run as one native call where the backend can.

        It is run once or more, on the CPU with stand-ins for tensors of `inputs`' shapes that know shape and dtype
        alone. The number of rows of what it returns is that of an input. What comes back takes tensors of those shapes,
        contiguous, and returns the same bits as `function` would; it keeps the weights and caches that `function` uses
        alive. A backend that has no programs returns `function`.

        With `kept`, what comes back takes more tensors: rows [R] int32, then `kept.inputs` once more for those rows. It
        returns these rows of the result [R, ...], and may leave out what only others need: most of a prompt's last
        layer.

        On CUDA inputs may lie on the host as well, and it returns before the device is done.
        """
        ...

    def capture(
        self, work: Callable[[int], Tensor], most: int, progress: Progress | None = None
    ) -> Callable[[int], Tensor]:
        """`work(rows)`, for up to `most` rows, prepared to be run again and again.

        It reads and writes memory at fixed addresses alone, besides what it allocates itself, and returns that many
        rows. On CUDA it is captured as graphs of a few sizes (ops.cuda_graphs). What comes back may run it for more
        rows than were asked for, so there have to be rows beyond those that do no harm; and what it returns is
        overwritten by the next run. Elsewhere it is `work`.
        """
        ...

    # ---- weights -------------------------------------------------------------------------------------------
    def pack_linear(self, weight: Tensor, *, gated: bool = False) -> PackedLinear:
        """weight [N, K] float32, bfloat16 or float16. With `gated`, weight is [gate; up] stacked, N even."""
        ...

    def unpack_linear(self, packed: PackedLinear) -> Tensor:
        """The exact inverse of pack_linear, [N, K]."""
        ...

    def pack_quantized(
        self, weight: QuantizedWeight, activations: Activations, *, gated: bool = False, threshold: float = 6.0
    ) -> QuantizedLinear:
        """With `gated`, weight is [gate; up] stacked, N even. LLM_INT8 takes 8 bits, group_size 0, symmetric."""
        ...

    def unpack_quantized(self, packed: QuantizedLinear) -> QuantizedWeight:
        """The exact inverse of pack_quantized."""
        ...

    def quantize(self, weights: Sequence[Tensor], *, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
        """Float weights [N_i, K], stacked by rows and rounded to the nearest code (ops.reference_rounding).

        4 bits take group_size 32, 64 or 128; 8 bits group_size 0 and symmetric. Scales are rounded to their dtype
        before codes are chosen. A group that no finite scale holds (infinities, NaN, beyond float16) gets a
        scale or offset that is not finite: the caller must look.
        """
        ...

    def weight_memory(self, nbytes: int) -> Tensor:
        """[nbytes] uint8, uninitialised, where weights are read fastest; its address is a multiple of 64."""
        ...

    # ---- dense ---------------------------------------------------------------------------------------------
    def embedding(self, ids: Tensor, table: Tensor | LinearWeight, scale: float = 1.0) -> Tensor:
        """ids [T] int32, table [V, H] any float -> [T, H] float32 = table[ids] * scale.

        A tied embedding gives the head's packed weight (not gated), so that the table is stored once.
        """
        ...

    def embedding_add_(self, residual: Tensor, ids: Tensor, table: Tensor, scale: float = 1.0) -> None:
        """residual [T, H] float32 += table[ids] * scale; ids [T] int32, table [V, H] any float."""
        ...

    def cast(self, x: Tensor, dtype: dtype) -> Tensor:
        """x [T, H] float32 -> [T, H] bfloat16, rounded to nearest even; x itself where dtype is float32."""
        ...

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        act: Activation = Activation.NONE,
        out_dtype: dtype | None = None,
    ) -> Tensor:
        """x [T, K] (rows may be strided) -> act(x @ weight.T + bias) [T, N], accumulated in float32.

        x is bfloat16 for bfloat16 weights, either for quantised ones, float32 otherwise. bias [N] float32 (for a gated
        weight: [gate; up] as stacked). Returns x.dtype, or out_dtype (float32). Gated: act(gate) * up, [T, N/2].
        """
        ...

    def linear_add_(self, residual: Tensor, x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> None:
        """residual [T, N] float32 += x @ weight.T + bias."""
        ...

    def lora_table(
        self, weight: LinearWeight, sizes: Sequence[int], *, adapters: int, rank: int, dtype: dtype
    ) -> LoraTable:
        """Room for what up to `adapters` adapters of at most `rank` ranks add to a layer of this weight (ops.lora).

        sizes: the rows of the published weights stacked in it. dtype: of activations. On CUDA the memory is taken here.
        """
        ...

    def lora_add_(self, y: Tensor, x: Tensor, adapters: Tensor, table: LoraTable) -> None:
        """y [T, N] float32 += what the adapters of its rows add, x [T, K] in the activation type; N is table.plain's.

        adapters [T] int32: the adapter of each row, -1 for none, which leaves the row as it is. Row t's sums run in an
        order that k and the adapter's rank give, whoever else is in the batch.
        """
        ...

    def finish_linear(
        self, y: Tensor, bias: Tensor | None, weight: LinearWeight, *, act: Activation, out_dtype: dtype
    ) -> Tensor:
        """What `linear` does behind its product with `weight`: act(y + bias) [T, N], or gated [T, N/2]; y [T, N of
        table.plain] float32.

        The same bits as `linear` gives; on CUDA not for float weights, whose products cuBLAS makes (`invariant` apart).
        """
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out_dtype: dtype) -> Tensor:
        """x [T, H] float32, weight [H] float32 -> x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: dtype) -> Tensor:
        """x [T, H] float32 -> (x - mean) / sqrt(var + eps) * weight + bias (arXiv 1607.06450)."""
        ...

    def rms_norm_add_(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
        """residual [T, H] float32 += rms_norm(x); x [T, H] float32, contiguous. For norms behind a block."""
        ...

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
        """residual [T, H] float32 += sum over a token's top_k experts e of p_e * down_e(act(gate_e(x)) * up_e(x)).

        x [T, K] in the activation type; scores [T, experts] float32, p their softmax, over all experts even where
        `renormalise` then divides by the sum of those chosen; of equal scores the lower expert comes first. up [experts
        * 2 N, K] is gated, all experts' gates stacked before all that they gate; down [experts * H, N] all experts'
        rows. So that an expert has panels of its own, N is a multiple of 16 and H of 32. A token's experts are added in
        the order of their scores.
        """
        ...

    def softcap_(self, x: Tensor, cap: float) -> None:
        """x [L, V] float32 = cap * tanh(x / cap), in place; cap > 0."""
        ...

    def gated_add_(self, residual: Tensor, x: Tensor, gate: Tensor) -> None:
        """residual [T, H] float32 += sigmoid(gate) * x; x [T, H] and gate [T, 1] float32."""
        ...

    # ---- the cache -----------------------------------------------------------------------------------------
    def page_bytes(self, layout: KVLayout) -> int:
        """Bytes that one page takes in keys and values of all layers; layout.num_pages does not matter.

        ValueError for shapes and dtypes that the backend's layout can't hold, naming the option to change.
        """
        ...

    def empty_cache(self, layout: KVLayout) -> tuple[Tensor, Tensor]:
        """(keys, values) of all layers, zero; see KVLayout. `keys[l]`, `values[l]` are one layer's, as ops take them.

        ValueError as `page_bytes` has it; MemoryError where there is not so much memory.
        """
        ...

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
        """Normalise queries and keys in place, before they are rotated.

        x [T, N] bfloat16 or float32. Columns start : start + len(weight) are cut in groups of `size`, a head or the
        whole width, and each is normalised by itself: rms_norm, or layer_norm where `centred`. weight and bias
        [groups * size] float32, so that every head may have its own.
        """
        ...

    def clip_(self, x: Tensor, limit: float) -> None:
        """x [T, N] bfloat16 or float32, in place: no element beyond -limit or limit; limit > 0."""
        ...

    def scale_rows_(self, x: Tensor, positions: Tensor, table: Tensor, *, width: int) -> None:
        """x [T, N] bfloat16 or float32, in place: the first `width` columns of row t times table[positions[t]].

        positions [T] int32, table [max_position] float32. For queries whose length grows with their position.
        """
        ...

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
        """Rotate q and k of `qkv` in place and write k and v to one layer's cache.

        qkv [T, (Hq + 2 Hkv) * D] rows q heads; k heads; v heads, activation dtype. keys, values: one layer of
        KVLayout. slots [T] int32 = page * B + offset. positions [T] int32. cos_sin [max_position, R] float32: R/2
        cosines then R/2 sines, R <= D the rotary dims (the first R of each head); None: no rotation. interleaved
        False pairs (i, i + R/2) as GPT-NeoX and LLaMA do, True pairs (2i, 2i + 1) as GPT-J does (arXiv 2104.09864).
        """
        ...

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
        """Causal attention of mixed prefill chunks and decode tokens over the paged cache (arXiv 2309.06180).

        Queries are the first Hq * D columns of qkv (rows may be strided; bfloat16 or float32). page_table [S,
        max_pages] int32; query_start [S + 1] int32, sequence s owns rows query_start[s]:query_start[s+1]; seq_lens
        [S] int32 counts all its tokens, this step's included, so its first row is at position seq_lens[s] -
        num_queries. Key j is seen from position i when j <= i and (sliding_window == 0 or i - j < sliding_window).
        Score = q.k * scale, then softcap * tanh(score / softcap) if softcap, then + alibi_slopes[head] * (j - i).
        alibi_slopes [Hq] float32, or bfloat16 for Falcon's bias: then score = (q.k + bf16(slope * bf16(j))) * scale,
        rounded as that model was trained. -> [T, Hq * D] of qkv.dtype. Slots past seq_len may hold anything, NaN
        included, and never reach the result.
        """
        ...

    def copy_pages(self, keys: Tensor, values: Tensor, src: Tensor, dst: Tensor) -> None:
        """For every layer, page dst[i] := page src[i]; keys, values as in KVLayout with all layers; int32 [n].

        No page is both a source and a destination.
        """
        ...

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
        """Draw one token a row. logits [R, V] float32, unchanged. -> [R] int32, -1 where nothing is left to choose.

        Every backend draws the same token from the same logits, to the bit. NaN logits count as -infinity; a row
        without any higher one (all forbidden, or a broken model) gives -1. In this order: (1) for the entries
        adjust_start[r]:adjust_start[r+1] (adjust_start [R+1] int32), each token adjust_ids at most once a row: logit =
        logit > 0 ? logit / adjust_scale : logit * adjust_scale (repetition penalty, arXiv 1909.05858), then logit +=
        adjust_add (presence, frequency, logit bias; -inf forbids); (2) mask [M, ceil(V/32)] int32 bit sets of allowed
        tokens (bit i%32 of word i/32), mask_rows [R] int32, -1: no mask; (3) temperature 0: argmax, lowest id wins
        ties; else p = 2^((logit - max) * (log2(e) / temperature)), in (0, 1], by the float32 roundings of
        csrc/include/octavo/sampling_math.h; (4) min_p [R]: keep p >= min_p; (5) top_k [R] int32 (0 off): exactly k
        by falling logit, the lowest ids first among equals at the boundary; (6) top_p [R] (1 off): the smallest prefix
        of the kept tokens by falling logit, ties by lowest id, whose mass >= top_p of their mass; (7) the first kept
        token in id order whose running mass exceeds floor(r / 2^64 * mass of all kept), r = words 0 and 1 of
        Philox4x32-10(key = seeds[r] (int64), counter = positions[r]), word 0 on top (Salmon et al., SC 2011). The mass
        of a token is p * 2^40 rounded to a whole number, so sums are exact; what is below 2^-41 of the best is never
        drawn. Infinite logits count as the highest finite one; V <= 2^22.
        """
        ...

    def logprobs(self, logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-softmax of the model's own logits (before any processing), for chosen tokens and the best ones.

        logits [R, V] float32, tokens [R] int32 -> (logprob [R] float32, rank [R] int32 with 1 the most likely (1 +
        number of strictly larger logits), top_ids [R, top] int32 and top_logprobs [R, top] float32, best first, ties
        by id). top <= V.
        """
        ...


def load_ops(
    device: str = "cpu", *, isa: str | None = None, num_threads: int = 0, batch_invariant: bool = False
) -> Ops:
    """The implementation for a device: "cpu", "cuda" or "cuda:1", or "reference" for plain torch.

    isa forces a CPU variant ("portable", "avx2", "avx512"); num_threads 0 takes the cores this process may use.
    batch_invariant: on CUDA law 6 holds for products of float weights too, which cuBLAS does not keep.
    Raises OpsUnavailable.
    """
    if device == "reference":
        from octavo_engine.ops.reference import ReferenceOps

        return ReferenceOps()
    if device == "cpu":
        from octavo_engine.ops.cpu import CpuOps

        return CpuOps(isa=isa, num_threads=num_threads)
    if device.partition(":")[0] == "cuda":
        from octavo_engine.ops.cuda import CudaOps

        return CudaOps(device, invariant=batch_invariant)
    raise OpsUnavailable(f"no ops for device {device!r}; known: 'cpu', 'cuda', 'cuda:N', 'reference'")
