"""Self-attention over the paged cache: one block for every architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from octavo_engine.layers.config import ConfigReader, UnsupportedModel

if TYPE_CHECKING:
    from octavo_engine.layers.batch import Batch
    from octavo_engine.layers.linear import Linear
    from octavo_engine.ops import Ops

__all__ = ["Attention", "Clip", "Heads", "QKVEdit", "layer_windows"]

QKVEdit = Callable[[Tensor, Tensor], None]
"""edit(qkv [T, (Hq + 2 Hkv) D], positions [T]): changes q, k and v in place before they are rotated and cached."""


class Heads(NamedTuple):
    """Query heads, key-value heads, elements of a head."""

    num: int
    num_kv: int
    dim: int

    @property
    def q(self) -> int:
        """Columns of all query heads."""
        return self.num * self.dim

    @property
    def kv(self) -> int:
        return self.num_kv * self.dim

    @classmethod
    def read(cls, config: ConfigReader) -> Heads:
        """num_key_value_heads absent is multi-head; head_dim need not be hidden_size / heads."""
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", default=heads)
        if heads % kv_heads:
            raise UnsupportedModel("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
        if config.get("head_dim", default=None) is None and hidden % heads:
            raise UnsupportedModel("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
        return cls(heads, kv_heads, config.integer("head_dim", default=hidden // heads))


class Clip:
    """Elements of qkv held within -limit and limit, in place."""

    __slots__ = ("limit", "ops")

    def __init__(self, ops: Ops, limit: float) -> None:
        self.ops, self.limit = ops, limit

    def __call__(self, qkv: Tensor, positions: Tensor) -> None:
        self.ops.clip_(qkv, self.limit)


class Attention:
    """W_out softmax(scale q k^T + position terms) v.

    qkv: one Linear with rows q heads; k heads; v heads. cos_sin: the rotation table (layers.rope) or None; interleaved:
    which pairs it turns, see Ops.rope_and_cache. sliding_window counts the query itself, 0 is full attention.
    alibi_slopes, softcap: see Ops.paged_attention. edits: what happens to q, k and v before the rotation.
    """

    __slots__ = (
        "alibi_slopes",
        "cos_sin",
        "edits",
        "interleaved",
        "num_heads",
        "ops",
        "out",
        "qkv",
        "scale",
        "sliding_window",
        "softcap",
    )

    def __init__(
        self,
        ops: Ops,
        qkv: Linear,
        out: Linear,
        *,
        num_heads: int,
        scale: float,
        cos_sin: Tensor | None = None,
        interleaved: bool = False,
        sliding_window: int = 0,
        alibi_slopes: Tensor | None = None,
        softcap: float = 0.0,
        edits: Sequence[QKVEdit] = (),
    ) -> None:
        self.ops, self.qkv, self.out = ops, qkv, out
        self.num_heads, self.scale, self.cos_sin = num_heads, scale, cos_sin
        self.sliding_window, self.softcap = sliding_window, softcap
        self.alibi_slopes = None if alibi_slopes is None else alibi_slopes.to(ops.device)
        self.interleaved, self.edits = interleaved, tuple(edits)

    def add_to(self, residual: Tensor, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> None:
        """residual [T, H] float32 += Attention(x); writes the tokens' keys and values to `kv`, one layer's cache."""
        self.out.add_to(residual, self.heads(x, batch, kv))

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """Attention(x) [T, H] float32, for a norm to follow."""
        return self.out(self.heads(x, batch, kv), torch.float32)

    def heads(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """softmax(...) v [T, Hq D] in the activation type."""
        keys, values = kv
        qkv = self.qkv(x)  # [T, (Hq + 2 Hkv) D]
        for edit in self.edits:
            edit(qkv, batch.positions)
        self.ops.rope_and_cache(
            qkv,
            keys,
            values,
            batch.slots,
            batch.positions,
            self.cos_sin,
            num_heads=self.num_heads,
            interleaved=self.interleaved,
        )
        return self.ops.paged_attention(
            qkv,
            keys,
            values,
            batch.page_table,
            batch.query_start,
            batch.seq_lens,
            num_heads=self.num_heads,
            scale=self.scale,
            sliding_window=self.sliding_window,
            alibi_slopes=self.alibi_slopes,
            softcap=self.softcap,
        )


def layer_windows(config: ConfigReader, window: int, slides: Callable[[int], bool]) -> list[int]:
    """The sliding window of each layer, 0 for full attention: by `layer_types`, in configs without it by slides(i)."""
    layers = config.integer("num_hidden_layers")
    kinds = config.get("layer_types", default=None)
    if kinds is None:
        return [window if slides(i) else 0 for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise UnsupportedModel("layer_types", kinds, f"full_attention or sliding_attention for each of {layers} layers")
    if not window and "sliding_attention" in kinds:
        raise UnsupportedModel("sliding_window", config.get("sliding_window", default=None), "a positive number")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]
