"""LLaMA (arXiv 2302.13971), LLaMA 2 (arXiv 2307.09288) and 3 (arXiv 2407.21783), TinyLlama, SmolLM2, Aquila.

Pre-norm with RMSNorm, rotary positions, SwiGLU feed-forward, grouped-query attention:

    x += W_o Attention(RMSNorm(x));  x += W_down (silu(W_gate h) * W_up h), h = RMSNorm(x)

What differs between the sizes is in the config: head_dim need not be hidden/heads, num_key_value_heads absent is
multi-head, attention_bias covers q, k, v and o, the head may be the embedding (tie_word_embeddings).

Relatives are subclasses that override what differs: `read` takes their config, the other methods make a layer's parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from octavo_engine.layers.attention import Attention, Heads, QKVEdit
from octavo_engine.layers.blocks import Block, FeedForward, Norm, SequentialBlock
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.norm import query_key_norms
from octavo_engine.layers.rope import Regimes, Rope
from octavo_engine.models.base import Decoder, ModelConfig

__all__ = ["Llama"]


class Llama(Decoder):
    """LlamaForCausalLM."""

    architecture = "LlamaForCausalLM"
    defaults: ClassVar[dict[str, Any]] = {}  # of keys that the family's configs may lack
    embed_name, norm_name, head_name = "model.embed_tokens", "model.norm", "lm_head"
    head_bias = False
    interleaved = False
    scores_cap = 0.0
    embedding_scale = logit_scale = 1.0

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config = config.with_defaults(self.defaults)
        self.ops, self.act_dtype = loader.ops, loader.act_dtype
        self.hidden = config.integer("hidden_size")
        self.heads = Heads.read(config)
        layers = config.integer("num_hidden_layers")
        self.windows = [0] * layers
        self.scale: float = self.heads.dim**-0.5
        tied = config.flag("tie_word_embeddings", default=False)
        self.read(config, max_model_len)
        self.config = ModelConfig(
            architecture=self.architecture,
            num_layers=layers,
            num_heads=self.heads.num,
            num_kv_heads=self.heads.num_kv,
            head_dim=self.heads.dim,
            hidden_size=self.hidden,
            vocab_size=config.integer("vocab_size"),
            max_position=min(rope.max_position for rope in self.ropes if rope is not None),
            dtype=loader.dtype,
            sliding_window=max(self.windows),
            regimes=self.common_regimes(),
        )
        self.rotations = {rope: self.rotation(rope, loader) for rope in set(self.ropes) if rope is not None}
        loader.ignore(r".*\.rotary_emb\.inv_freq")  # a buffer that older files carry

        self.embed, self.head = loader.embedding_and_head(
            self.embed_name,
            self.config.vocab_size,
            self.hidden,
            head=self.head_name,
            tied=tied,
            bias=self.head_bias,
            scale=self.embedding_scale,
        )
        self.layers = [self.block(loader.at(self.layer_name(i)), i) for i in range(layers)]
        self.norm = self.new_norm(loader, self.norm_name, scale=self.logit_scale)

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        """Everything else that a layer needs of the config, before any tensor is read."""
        self.width = config.integer("intermediate_size")
        self.eps = config.number("rms_norm_eps", default=1e-6)
        self.act = config.activation("hidden_act", default="silu")
        self.qkv_bias = self.out_bias = config.flag("attention_bias", default=False)
        self.mlp_bias = config.flag("mlp_bias", default=False)
        rope = Rope(config, self.rotary_dim(config), max_model_len)
        self.ropes: list[Rope | None] = [rope] * len(self.windows)  # of each layer

    def rotary_dim(self, config: ConfigReader) -> int:
        config.only("partial_rotary_factor", [1.0])
        return self.heads.dim

    def common_regimes(self) -> Regimes | None:
        """Of all layers: they share a batch's positions."""
        found = {rope.regimes for rope in self.ropes if rope is not None}
        if len(found) > 1:
            raise UnsupportedModel("rope_parameters", found, "the same dependence on the length in all layers")
        return found.pop()

    def layer_name(self, i: int) -> str:
        return f"model.layers.{i}."

    def block(self, loader: Loader, i: int) -> Block:
        return SequentialBlock(
            self.new_norm(loader, "input_layernorm"),
            self.attention(loader.at("self_attn."), i),
            self.new_norm(loader, "post_attention_layernorm"),
            self.mlp(loader, i),
        )

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return loader.rms_norm(name, self.hidden, self.eps, scale=scale)

    def attention(self, loader: Loader, i: int, out: str = "o_proj") -> Attention:
        rope = self.ropes[i]
        return Attention(
            self.ops,
            self.qkv(loader),
            loader.linear(out, self.hidden, self.heads.q, Parallel.ROW, bias=self.out_bias),
            num_heads=self.heads.num,
            scale=self.scale,
            edits=self.edits(loader),
            cos_sin=None if rope is None else self.rotations[rope],
            interleaved=self.interleaved,
            sliding_window=self.windows[i],
            softcap=self.scores_cap,
        )

    def qkv(self, loader: Loader) -> Linear:
        names, sizes = ("q_proj", "k_proj", "v_proj"), (self.heads.q, self.heads.kv, self.heads.kv)
        return loader.linear(names, sizes, self.hidden, Parallel.COLUMN, bias=self.qkv_bias)

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        """What happens to q, k and v before they are rotated."""
        return ()

    def head_norms(self, loader: Loader, offset: float = 0.0) -> Sequence[QKVEdit]:
        """RMSNorm of each head by offset + q_norm or k_norm, one weight for all heads of either."""
        q, k = (offset + loader.vector(f"{name}.weight", self.heads.dim) for name in ("q_norm", "k_norm"))
        weights = q.repeat(self.heads.num), k.repeat(self.heads.num_kv)
        return query_key_norms(self.ops, weights, None, self.eps, head_dim=self.heads.dim)

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        return self.gated_mlp(loader.at("mlp."), self.width)

    def gated_mlp(
        self, loader: Loader, width: int, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
    ) -> MLP:
        """W_down (act(W_gate x) * W_up x)."""
        bias = self.mlp_bias
        return MLP(
            loader.linear(
                (gate, up), (width, width), self.hidden, Parallel.COLUMN, bias=bias, act=self.act, gated=True
            ),
            loader.linear(down, self.hidden, width, Parallel.ROW, bias=bias),
        )

    def merged_mlp(self, loader: Loader) -> MLP:
        """The same with gate and up in one gate_up_proj, the gate first; no biases."""
        both = self.width, self.width
        up = loader.linear(
            "gate_up_proj", sum(both), self.hidden, Parallel.COLUMN, bias=False, act=self.act, gated=True, parts=both
        )
        return MLP(up, loader.linear("down_proj", self.hidden, self.width, Parallel.ROW, bias=False))

    def plain_mlp(self, loader: Loader, up: str, down: str) -> MLP:
        """W_down act(W_up x)."""
        return MLP(
            loader.linear(up, self.width, self.hidden, Parallel.COLUMN, bias=self.mlp_bias, act=self.act),
            loader.linear(down, self.hidden, self.width, Parallel.ROW, bias=self.mlp_bias),
        )
