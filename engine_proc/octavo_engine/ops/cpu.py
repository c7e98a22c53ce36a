"""The native CPU ops: csrc/cpu behind TVM FFI, one Python method an op.

Each method allocates its outputs with `self._empty` and calls one native function that checks shapes and types; nothing
is copied on the way. Both are attributes of the instance, which `record` replaces for a while (ops/program.py): so no
method looks into a tensor of activations. All run on the engine's one thread pool; the calling thread is its worker 0.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops import Activation, LinearWeight, OpsUnavailable, PackedLinear, QuantizedLinear, cpu_cache
from octavo_engine.ops.cpu_quantized import QuantizedOps
from octavo_engine.ops.cpu_rounding import RoundingOps
from octavo_engine.ops.lora import LoraTable, panel_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from octavo_engine.ops import KeptRows, KVLayout, Progress, TensorSpec
    from octavo_engine.ops.program import Program

__all__ = ["CpuOps", "load_library"]

_LIBRARY = Path(__file__).parent / "_native" / "liboctavo_cpu.so"
_PANEL = 32
_CHUNK = 64 << 20
_HUGE_PAGE = 2 << 20

_library: Any = None


def load_library() -> Any:
    """The loaded native library as a TVM FFI module, once a process. Raises OpsUnavailable."""
    global _library
    if _library is None:
        if not _LIBRARY.exists():
            raise OpsUnavailable(
                f"the native library {_LIBRARY} is missing; in a checkout build it with `pip install "
                "--no-build-isolation -e .` or `cmake -S csrc -B build/native -G Ninja && cmake --build build/native`"
            )
        try:
            import tvm_ffi
        except ImportError as error:
            raise OpsUnavailable("the native ops need apache-tvm-ffi: pip install 'octavo[engine]'") from error
        _library = tvm_ffi.load_module(str(_LIBRARY))
    return _library


class _WeightMemory:
    """Weight storage from large blocks on 2 MiB pages: streaming weights through 4 KiB ones costs TLB misses.

    A block lives as long as any tensor cut from it. Several threads may pack at once.
    """

    def __init__(self, advise: Any) -> None:
        self._advise = advise
        self._lock = threading.Lock()
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor whose address is a multiple of 64."""
        size = dtype.itemsize
        for n in shape:
            size *= n
        with self._lock:
            if self._used + size > self._block.numel():
                block = torch.empty(max(size, _CHUNK) + _HUGE_PAGE, dtype=torch.uint8)
                skip = -block.data_ptr() % _HUGE_PAGE
                self._block, self._used = block[skip : skip + max(size, _CHUNK)], 0
                self._advise(self._block)
            block, start = self._block, self._used
            self._used = start + (size + 63) // 64 * 64
        return block[start : start + size].view(dtype).view(shape)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


class CpuOps(QuantizedOps, RoundingOps):
    """`Ops` on the CPU. The pool and the instruction set are the process's: the last CpuOps made decides both."""

    name = "cpu"
    asynchronous = False

    def __init__(self, *, isa: str | None = None, num_threads: int = 0) -> None:
        """isa "portable", "avx2" or "avx512", None the best here; num_threads 0: one a core this process may use.

        Raises OpsUnavailable when the library is missing or the machine can't run `isa`.
        """
        library = load_library()
        self.device = torch.device("cpu")
        try:
            library.set_isa(isa or "")
        except ValueError as error:
            raise OpsUnavailable(str(error)) from error
        library.tune_malloc()
        library.set_num_threads(num_threads or library.num_cores())
        self.isa: str = str(library.isa())
        self.num_threads: int = int(library.num_threads())
        self._memory = _WeightMemory(library.advise_huge_pages)
        self._make_program = library.make_program
        self._gather_rows = library.gather_rows
        self._empty: Callable[..., Tensor] = _empty
        # Bound once: a module attribute costs a lookup by name in the library at every access.
        self._pack_linear = library.pack_linear
        self._unpack_linear = library.unpack_linear
        self._embedding = library.embedding
        self._embedding_add = library.embedding_add
        self._embedding_packed = library.embedding_packed
        self._linear = library.linear
        self._linear_add = library.linear_add
        self._cast = library.cast
        self._lora_add = library.lora_add
        self._finish_linear = library.finish_linear
        self._rms_norm = library.rms_norm
        self._layer_norm = library.layer_norm
        self._rms_norm_add = library.rms_norm_add
        self._softcap = library.softcap
        self._gated_add = library.gated_add
        self._head_norm = library.head_norm
        self._clip = library.clip
        self._scale_rows = library.scale_rows
        self._moe_add = library.moe_add
        self._rope_and_cache = library.rope_and_cache
        self._paged_attention = library.paged_attention
        self._copy_pages = library.copy_pages
        self._sample = library.sample
        self._logprobs = library.logprobs
        self._bind_quantized(library)
        self._bind_rounding(library)

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if weights == torch.bfloat16 else torch.float32

    def record(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        kept: KeptRows | None = None,
    ) -> Program:
        from octavo_engine.ops.program import record  # here, for tvm_ffi may be missing where this module is read

        return record(self, self._make_program, function, inputs, kept, self._gather_rows)

    def capture(
        self, work: Callable[[int], Tensor], most: int, progress: Progress | None = None
    ) -> Callable[[int], Tensor]:
        return work

    # ---- weights -------------------------------------------------------------------------------------------
    def pack_linear(self, weight: Tensor, *, gated: bool = False) -> PackedLinear:
        n, k = weight.shape
        p = 2 if weight.dtype == torch.bfloat16 else 1
        data = self._memory.empty(((n + _PANEL - 1) // _PANEL, (k + p - 1) // p, _PANEL, p), weight.dtype)
        self._pack_linear(data, weight.contiguous(), gated)
        return PackedLinear(data, n, k, gated)

    def unpack_linear(self, packed: PackedLinear) -> Tensor:
        weight = self._empty((packed.out_features, packed.in_features), packed.data.dtype)
        self._unpack_linear(weight, packed.data, packed.gated)
        return weight

    def weight_memory(self, nbytes: int) -> Tensor:
        return self._memory.empty((nbytes,), torch.uint8)

    # ---- dense ---------------------------------------------------------------------------------------------
    def embedding(self, ids: Tensor, table: Tensor | LinearWeight, scale: float = 1.0) -> Tensor:
        if isinstance(table, QuantizedLinear):
            out = self._empty((ids.shape[0], table.in_features), torch.float32)
            self._lookup_quantized(out, ids, table, scale)
            return out
        if isinstance(table, PackedLinear):
            rows, width = table.out_features, table.in_features
            out = self._empty((ids.shape[0], width), torch.float32)
            self._embedding_packed(out, ids, table.data, rows, width, scale)
            return out
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

    def linear(
        self,
        x: Tensor,
        weight: LinearWeight,
        bias: Tensor | None = None,
        *,
        act: Activation = Activation.NONE,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        n = weight.out_features
        out = self._empty((x.shape[0], n // 2 if weight.gated else n), out_dtype or x.dtype)
        if isinstance(weight, QuantizedLinear):
            self._multiply_quantized(out, x, weight, bias, act)
        else:
            self._linear(out, x, weight.data, bias, n, int(act), weight.gated)
        return out

    def linear_add_(self, residual: Tensor, x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> None:
        if isinstance(weight, QuantizedLinear):
            self._multiply_quantized_add(residual, x, weight, bias)
        else:
            self._linear_add(residual, x, weight.data, bias, weight.out_features)

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

    def rms_norm_add_(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
        self._rms_norm_add(residual, x, weight, eps)

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
        tokens, width = x.shape[0], up.out_features // experts // 2
        self._moe_add(
            residual,
            x,
            scores,
            up.data,
            down.data,
            self._empty((tokens, top_k * x.shape[1]), x.dtype),
            self._empty((tokens, top_k * width), x.dtype),
            self._empty((tokens, top_k * residual.shape[1]), torch.float32),
            self._empty((tokens, 2 * top_k), torch.int32),
            self._empty((tokens, top_k), torch.float32),
            experts,
            top_k,
            renormalise,
            int(act),
            *up.form,
            *down.form,
        )

    def softcap_(self, x: Tensor, cap: float) -> None:
        self._softcap(x, cap)

    def gated_add_(self, residual: Tensor, x: Tensor, gate: Tensor) -> None:
        self._gated_add(residual, x, gate)

    def lora_table(
        self, weight: LinearWeight, sizes: Sequence[int], *, adapters: int, rank: int, dtype: torch.dtype
    ) -> LoraTable:
        return panel_table(weight, sizes, adapters)

    def lora_add_(self, y: Tensor, x: Tensor, adapters: Tensor, table: LoraTable) -> None:
        self._lora_add(y, x, adapters, table.entries, table.scales, table.segments)

    def finish_linear(
        self, y: Tensor, bias: Tensor | None, weight: LinearWeight, *, act: Activation, out_dtype: torch.dtype
    ) -> Tensor:
        out_features, gated = weight.out_features, weight.gated
        out = self._empty((y.shape[0], out_features // 2 if gated else out_features), out_dtype)
        self._finish_linear(out, y, bias, out_features, int(act), gated)
        return out

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
        self._head_norm(x, weight, bias, eps, size, start, centred)

    def clip_(self, x: Tensor, limit: float) -> None:
        self._clip(x, limit)

    def scale_rows_(self, x: Tensor, positions: Tensor, table: Tensor, *, width: int) -> None:
        self._scale_rows(x, positions, table, width)

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
        head_dim = values.shape[3]  # [P, Hkv, B/p, D, p]
        out = self._empty((qkv.shape[0], num_heads * head_dim), qkv.dtype)
        self._paged_attention(
            out,
            qkv,
            keys,
            values,
            page_table,
            query_start,
            seq_lens,
            num_heads,
            scale,
            sliding_window,
            alibi_slopes,
            softcap,
        )
        return out

    def copy_pages(self, keys: Tensor, values: Tensor, src: Tensor, dst: Tensor) -> None:
        self._copy_pages(keys, values, src, dst)

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
        out = self._empty((logits.shape[0],), torch.int32)
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
        )
        return out

    def logprobs(self, logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = logits.shape[0]
        chosen = self._empty((rows,), torch.float32)
        rank = self._empty((rows,), torch.int32)
        top_ids = self._empty((rows, top), torch.int32)
        top_logprobs = self._empty((rows, top), torch.float32)
        self._logprobs(chosen, rank, top_ids, top_logprobs, logits, tokens)
        return chosen, rank, top_ids, top_logprobs
