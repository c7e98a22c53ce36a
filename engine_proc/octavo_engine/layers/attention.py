"""Self-attention over the paged cache: one block for every architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.layers.batch import Batch
    from octavo_engine.layers.linear import Linear
    from octavo_engine.ops import Ops

__all__ = ["Attention"]


class Attention:
    """W_out softmax(scale q k^T + position terms) v.

    qkv: one Linear with rows q heads; k heads; v heads. cos_sin: the rotation table (layers.rope) or None.
    sliding_window counts the query itself, 0 is full attention. alibi_slopes, softcap: see Ops.paged_attention.
    """

    __slots__ = ("alibi_slopes", "cos_sin", "num_heads", "ops", "out", "qkv", "scale", "sliding_window", "softcap")

    def __init__(
        self,
        ops: Ops,
        qkv: Linear,
        out: Linear,
        *,
        num_heads: int,
        scale: float,
        cos_sin: Tensor | None = None,
        sliding_window: int = 0,
        alibi_slopes: Tensor | None = None,
        softcap: float = 0.0,
    ) -> None:
        self.ops, self.qkv, self.out = ops, qkv, out
        self.num_heads, self.scale, self.cos_sin = num_heads, scale, cos_sin
        self.sliding_window, self.softcap = sliding_window, softcap
        self.alibi_slopes = None if alibi_slopes is None else alibi_slopes.to(ops.device)

    def add_to(self, residual: Tensor, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> None:
        """residual [T, H] float32 += Attention(x); writes the tokens' keys and values to `kv`, one layer's cache."""
        keys, values = kv
        qkv = self.qkv(x)  # [T, (Hq + 2 Hkv) D]
        self.ops.rope_and_cache(qkv, keys, values, batch.slots, batch.positions, self.cos_sin, num_heads=self.num_heads)
        heads = self.ops.paged_attention(
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
        )  # [T, Hq D]
        self.out.add_to(residual, heads)
