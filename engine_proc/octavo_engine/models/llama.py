"""LLaMA (arXiv 2302.13971), LLaMA 2 (arXiv 2307.09288) and 3 (arXiv 2407.21783), TinyLlama, SmolLM2.

Pre-norm with RMSNorm, rotary positions, SwiGLU feed-forward, grouped-query attention:

    x += W_o Attention(RMSNorm(x));  x += W_down (silu(W_gate h) * W_up h), h = RMSNorm(x)

What differs between the sizes is in the config: head_dim need not be hidden/heads, num_key_value_heads absent is
multi-head, attention_bias covers q, k, v and o, the head may be the embedding (tie_word_embeddings).
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.batch import Batch
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import Rope
from octavo_engine.models.base import ModelConfig

__all__ = ["Llama"]


class Llama:
    """LlamaForCausalLM, and its relatives by what they pass on."""

    architecture = "LlamaForCausalLM"

    def __init__(
        self, config: ConfigReader, loader: Loader, max_model_len: int | None = None, *, sliding_window: int = 0
    ) -> None:
        config.only("partial_rotary_factor", [1.0])
        hidden = config.integer("hidden_size")
        heads = config.integer("num_attention_heads")
        kv_heads = config.integer("num_key_value_heads", default=heads)
        head_dim = config.integer("head_dim", default=hidden // heads)
        if heads % kv_heads:
            raise UnsupportedModel("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
        rope = Rope(config, head_dim, max_model_len)
        self.config = ModelConfig(
            architecture=self.architecture,
            num_layers=config.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            hidden_size=hidden,
            vocab_size=config.integer("vocab_size"),
            max_position=rope.max_position,
            dtype=loader.dtype,
            sliding_window=sliding_window,
        )
        eps = config.number("rms_norm_eps", default=1e-6)
        tied = config.flag("tie_word_embeddings", default=False)
        cos_sin = rope.table().to(loader.ops.device)
        loader.ignore(r".*\.rotary_emb\.inv_freq")  # a buffer that older files carry

        self.embed, self.head = loader.embedding_and_head(
            "model.embed_tokens", self.config.vocab_size, hidden, head="lm_head", tied=tied
        )
        self.layers = [
            LlamaLayer(config, self.config, loader.at(f"model.layers.{i}."), cos_sin, eps)
            for i in range(self.config.num_layers)
        ]
        self.norm = loader.rms_norm("model.norm", hidden, eps)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embed(batch.token_ids)  # [T, H] float32
        for layer, kv in zip(self.layers, batch.kv, strict=True):
            layer(x, batch, kv)
        return x

    def logits(self, rows: Tensor) -> Tensor:
        return self.head(self.norm(rows), torch.float32)


class LlamaLayer:
    """Attention and MLP, each behind its norm, added to the residual stream in place."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, config: ConfigReader, model: ModelConfig, loader: Loader, cos_sin: Tensor, eps: float) -> None:
        hidden, width = model.hidden_size, config.integer("intermediate_size")
        q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        bias = config.flag("attention_bias", default=False)
        mlp_bias = config.flag("mlp_bias", default=False)
        self.attention_norm = loader.rms_norm("input_layernorm", hidden, eps)
        attn = loader.at("self_attn.")
        self.attention = Attention(
            loader.ops,
            attn.linear(("q_proj", "k_proj", "v_proj"), (q, kv, kv), hidden, Parallel.COLUMN, bias=bias),
            attn.linear("o_proj", hidden, q, Parallel.ROW, bias=bias),
            num_heads=model.num_heads,
            scale=model.head_dim**-0.5,
            cos_sin=cos_sin,
            sliding_window=model.sliding_window,
        )
        self.mlp_norm = loader.rms_norm("post_attention_layernorm", hidden, eps)
        mlp = loader.at("mlp.")
        self.mlp = MLP(
            mlp.linear(
                ("gate_proj", "up_proj"),
                (width, width),
                hidden,
                Parallel.COLUMN,
                bias=mlp_bias,
                act=config.activation("hidden_act", default="silu"),
                gated=True,
            ),
            mlp.linear("down_proj", hidden, width, Parallel.ROW, bias=mlp_bias),
        )

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> None:
        self.attention.add_to(x, self.attention_norm(x), batch, kv)
        self.mlp.add_to(x, self.mlp_norm(x))
