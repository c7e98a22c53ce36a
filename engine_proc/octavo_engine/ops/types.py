"""What ops take and give: weights and their packed layouts, the cache's layout, what is recorded.

The notation is that of octavo_engine.ops, which is where others import these from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, dtype

__all__ = [
    "Activation",
    "Activations",
    "KVLayout",
    "KeptRows",
    "LinearWeight",
    "OpsUnavailable",
    "PackedLinear",
    "Progress",
    "QuantizedLinear",
    "QuantizedWeight",
    "TensorSpec",
]


class OpsUnavailable(Exception):
    """The asked implementation can't run here; the message says why and what would help."""


class Activation(IntEnum):
    """Element-wise function fused behind a linear layer."""

    NONE = 0
    RELU = 1
    GELU = 2  # exact, by erf
    GELU_TANH = 3  # also called gelu_new, gelu_pytorch_tanh
    SILU = 4


WeightForm: TypeAlias = tuple[int, int, bool, int, float]
"""bits (0: floats), group_size, symmetric, activations, threshold: for native calls that take weights of any kind."""


@dataclass(frozen=True)
class PackedLinear:
    """A weight [N, K] in the layout that `Ops.linear` reads.

    data: the packed weight. For float weights on the CPU: [ceil(N/32), K/p, 32, p] with p = 2 for bfloat16 and
    1 for float32 and float16, so that one 64-byte line holds 16 outputs' next 4 bytes of K (a panel of 32 outputs is
    one sequential stream); rows beyond N and an odd K's last column are zero. On CUDA: the weight as it was, [N, K].
    gated: on the CPU rows were interleaved so that each panel holds 16 gate rows and the 16 up rows of the same
    outputs; `linear` returns act(gate) * up, of width N/2.
    """

    data: Tensor
    out_features: int  # N, of the matrix as stored; a gated layer's output has half as many
    in_features: int  # K
    gated: bool = False

    @property
    def form(self) -> WeightForm:
        return 0, 0, True, 0, 0.0


class Activations(IntEnum):
    """What a quantised weight is multiplied with.

    FLOAT: the activations as they are (W4A16, W8A16). INT8: each row of x in int8 (W4A8, W8A8), each 32 elements of it
    with a scale of their own, absmax / 127, round half to even. One scale a row cost SmolLM2 2.0 % of perplexity as
    stored and 4.1 % with int8 weights, where one for each 32 costs 0.3 and 1.1 %. LLM_INT8: int8 with one scale a row,
    but elements of x with |x| >= threshold stay in float (arXiv 2208.07339; the paper keeps a whole column of the
    batch, here each row decides for itself, as law 6 asks).
    """

    FLOAT = 0
    INT8 = 1
    LLM_INT8 = 2


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [N, K] in 4 or 8 bits, as a scheme made it or a file holds it; not yet packed.

    w[n, k] = scales[n, g] * (codes[n, k] - 2^(bits-1))        symmetric (offsets None)
    w[n, k] = scales[n, g] * codes[n, k] + offsets[n, g]       asymmetric,     g = k // group_size

    codes [N, K] uint8, 0..15 or 0..255. group_size: 32, 64 or 128 with scales and offsets [N, ceil(K / group_size)]
    float16 (the last group may be shorter), or 0, one group a row, with scales and offsets [N, 1] float32.
    """

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None
    bits: int
    group_size: int


@dataclass(frozen=True)
class QuantizedLinear:
    """A weight [N, K] of 4 or 8 bits in the layout that `Ops.linear` reads (one for every instruction set).

    data [panels, bytes of a panel] uint8. A panel is 32 outputs, rows beyond N zero; of a gated weight 16 gate rows
    and the 16 up rows of the same outputs. It is a sequence of groups of K, one after the other:

        codes    for 4 bits, each next 8 k: two 64-byte lines, of outputs 0-15 and 16-31, 4 bytes an output; byte i
                 holds code[k + i] in its low and code[k + 4 + i] in its high half. For 8 bits, each next 4 k: two such
                 lines, byte i holds code[k + i]. K is filled up to a multiple of 8 or 4 with codes that stand for zero.
        scales   32 float16 (group_size 0: float32), 64 or 128 bytes
        offsets  likewise, of an asymmetric weight only

    On CUDA: [tiles of 16 outputs, bytes of a tile], in the tensor cores' order, as csrc/cuda/quantized.h draws it.
    """

    data: Tensor
    out_features: int  # N, of the matrix as stored; a gated layer's output has half as many
    in_features: int  # K
    bits: int
    group_size: int
    symmetric: bool
    activations: Activations
    gated: bool = False
    threshold: float = 6.0  # of LLM_INT8

    @property
    def form(self) -> WeightForm:
        return self.bits, self.group_size, self.symmetric, int(self.activations), self.threshold


LinearWeight: TypeAlias = PackedLinear | QuantizedLinear


@dataclass(frozen=True)
class KVLayout:
    """What a paged cache of all layers holds; `Ops.empty_cache` makes it, one tensor for keys and one for values.

    Slot s of a page table entry is token `page * B + offset`; B is a multiple of 16. Each backend has a layout of its
    own, which its ops alone read and write; the first two dimensions are [layers, P] in all of them. dtype: float32,
    bfloat16, float16 or int8, on CUDA float8_e4m3fn too.

    CPU and reference, D and B even:

        keys:   [layers, P, Hkv, D/p, B, p]
        values: [layers, P, Hkv, B/p, D, p]

    p = 2 for bfloat16 and 1 for float32 and float16: p consecutive elements of the reduced dimension lie side by
    side (D for q.k, tokens for p.v), 16 lanes of the other dimension follow.
    int8 (p = 4): keys [layers, P, Hkv, D/4 + 2, B, 4], where line D/4 holds the B float32 scales of the page's keys,
    one a token and head, and line D/4 + 1 those of its values; values [layers, P, Hkv, B/4, D, 4]. A key is code *
    scale.

    CUDA, D even and at most 256: what one block of threads reads of a page is contiguous.

        keys, values: [layers, P, Hkv, B, D]

    int8 and float8_e4m3fn: [layers, P, Hkv, B * D + 2 * B] of that dtype, one byte an element: the codes [B, D], then
    B float16 scales, one a token and head; keys and values each have their own. A key is code * scale.
    """

    num_layers: int
    num_pages: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: dtype


@dataclass(frozen=True)
class TensorSpec:
    """What a recorded function takes. shape: sizes, or names of those that vary from run to run; equal names, equal
    sizes."""

    shape: tuple[int | str, ...]
    dtype: dtype


Progress: TypeAlias = "Callable[[str, int, int, str], None]"
"""progress(stage, done, total, text)."""


@dataclass(frozen=True)
class KeptRows:
    """Which inputs of a recorded function depend on the rows that are wanted of its result.

    writes: the input, one entry a row, that says where a row leaves a trace beyond the result (a cache slot): calls
    that read it, and those before, are for every row. inputs: those that describe sequences; each is given once more,
    with every kept row as a sequence of its own.
    """

    writes: int
    inputs: tuple[int, ...]
