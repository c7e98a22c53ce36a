"""Decoder blocks: how attention and feed-forward stand to the residual stream x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from torch import dtype

    from octavo_engine.layers.attention import Attention
    from octavo_engine.layers.batch import Batch
    from octavo_engine.layers.mlp import MLP
    from octavo_engine.layers.norm import RMSNorm

__all__ = [
    "Block",
    "FeedForward",
    "Norm",
    "NormedResidualBlock",
    "ParallelBlock",
    "PostNormBlock",
    "SandwichBlock",
    "SequentialBlock",
]


class Norm(Protocol):
    """x [T, H] float32 -> [T, H]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class FeedForward(Protocol):
    """layers.mlp.MLP, layers.moe.MoE: M."""

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """residual [T, H] float32 += M(x), x in the activation type."""
        ...


class Block(Protocol):
    """x [T, H] float32 -> the stream after the block, x itself where it is changed in place."""

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor: ...


class SequentialBlock:
    """x += Attention(N1(x)); x += MLP(N2(x))."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: FeedForward) -> None:
        self.attention_norm, self.attention, self.mlp_norm, self.mlp = attention_norm, attention, mlp_norm, mlp

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        self.attention.add_to(x, self.attention_norm(x), batch, kv)
        self.mlp.add_to(x, self.mlp_norm(x))
        return x


class NormedResidualBlock(SequentialBlock):
    """x = N1(x); x += Attention(x); x = N2(x); x += MLP(x): the stream goes on from the norms, which give float32."""

    __slots__ = ("act_dtype",)

    def __init__(
        self, act_dtype: dtype, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: FeedForward
    ) -> None:
        super().__init__(attention_norm, attention, mlp_norm, mlp)
        self.act_dtype = act_dtype

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        cast, act_dtype = self.attention.ops.cast, self.act_dtype
        x = self.attention_norm(x)
        self.attention.add_to(x, cast(x, act_dtype), batch, kv)
        x = self.mlp_norm(x)
        self.mlp.add_to(x, cast(x, act_dtype))
        return x


class ParallelBlock:
    """x += Attention(N1(x)) + MLP(N2(x)), both of the same x; without a second norm N1(x) serves both."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm | None, mlp: FeedForward) -> None:
        self.attention_norm, self.attention, self.mlp_norm, self.mlp = attention_norm, attention, mlp_norm, mlp

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        h = self.attention_norm(x)
        g = h if self.mlp_norm is None else self.mlp_norm(x)
        self.attention.add_to(x, h, batch, kv)
        self.mlp.add_to(x, g)
        return x


class SandwichBlock:
    """x += N2(Attention(N1(x))); x += N4(MLP(N3(x)))."""

    __slots__ = ("after_attention", "after_mlp", "attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(
        self,
        attention_norm: Norm,
        attention: Attention,
        after_attention: RMSNorm,
        mlp_norm: Norm,
        mlp: MLP,
        after_mlp: RMSNorm,
    ) -> None:
        self.attention_norm, self.attention, self.after_attention = attention_norm, attention, after_attention
        self.mlp_norm, self.mlp, self.after_mlp = mlp_norm, mlp, after_mlp

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        self.after_attention.add_to(x, self.attention(self.attention_norm(x), batch, kv))
        self.after_mlp.add_to(x, self.mlp(self.mlp_norm(x)))
        return x


class PostNormBlock:
    """x += N1(Attention(x)); x += N2(MLP(x)): attention and feed-forward read the stream itself."""

    __slots__ = ("act_dtype", "after_attention", "after_mlp", "attention", "mlp")

    def __init__(
        self,
        act_dtype: dtype,
        attention: Attention,
        after_attention: RMSNorm,
        mlp: MLP,
        after_mlp: RMSNorm,
    ) -> None:
        self.attention, self.after_attention, self.mlp, self.after_mlp = attention, after_attention, mlp, after_mlp
        self.act_dtype = act_dtype

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        cast, act_dtype = self.attention.ops.cast, self.act_dtype
        self.after_attention.add_to(x, self.attention(cast(x, act_dtype), batch, kv))
        self.after_mlp.add_to(x, self.mlp(cast(x, act_dtype)))
        return x
