"""Falcon (arXiv 2311.16867): 7b (one key-value head), 40b, 180b and 11b (the "new decoder": grouped heads), rw (ALiBi).

Attention and feed-forward side by side but in rw: 7b and 11b through one norm, 40b and 180b through one each. Rows of
query_key_value are, for each key-value head, its queries, its key, its value. In rw the bias is added before the
scores are divided by sqrt(d), and slopes and products are bfloat16 whatever the weights are. The first uploads spell
the config otherwise: RefinedWeb is 40b, RefinedWebModel 7b and rw.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo_engine.layers.alibi import alibi_slopes
from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import Block, ParallelBlock, SequentialBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader, qkv_rows
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import Rope
from octavo_engine.models.base import Decoder, read_sizes

__all__ = ["Falcon"]


class Falcon(Decoder):
    """FalconForCausalLM, RWForCausalLM."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("apply_residual_connection_post_layernorm", [False])
        old_40b = config.get("model_type", default=None) == "RefinedWeb"
        new = config.flag("new_decoder_architecture", default=old_40b)
        multi_query = config.flag("multi_query", default=True)
        heads = config.integer("num_attention_heads", "n_head")
        kv_heads = config.integer("num_kv_heads", "n_head_kv", default=heads) if new else 1 if multi_query else heads
        alibi = config.flag("alibi", default=False)
        rope = Rope(config, config.integer("hidden_size", "n_embed") // heads, max_model_len)
        sizes = read_sizes("FalconForCausalLM", config, loader, kv_heads=kv_heads, max_position=rope.max_position)
        self.config = sizes if alibi else replace(sizes, regimes=rope.regimes)
        hidden, d = sizes.hidden_size, sizes.head_dim
        width = config.integer("ffn_hidden_size", default=4 * hidden)
        eps = config.number("layer_norm_epsilon", default=1e-5)
        act = config.activation("activation", default="gelu")
        bias = config.flag("bias", default=False)
        parallel = new or config.flag("parallel_attn", default=True)
        two_norms = new and config.integer("num_ln_in_parallel_attn", default=2) == 2
        cos_sin = None if alibi else self.rotation(rope, loader)
        slopes = alibi_slopes(heads).to(loader.ops.device, torch.bfloat16) if alibi else None
        parts = (hidden, kv_heads * d, kv_heads * d)
        body = loader.at("transformer.")

        def layer(at: Loader) -> Block:
            attn, mlp = at.at("self_attention."), at.at("mlp.")
            norm = at.layer_norm("ln_attn" if two_norms else "input_layernorm", hidden, eps)
            attention = Attention(
                at.ops,
                attn.linear(
                    "query_key_value",
                    sum(parts),
                    hidden,
                    Parallel.COLUMN,
                    bias=bias,
                    parts=parts,
                    rows=qkv_rows(kv_heads, heads // kv_heads, d),
                ),
                attn.linear("dense", hidden, hidden, Parallel.ROW, bias=bias),
                num_heads=heads,
                scale=d**-0.5,
                cos_sin=cos_sin,
                alibi_slopes=slopes,
            )
            feed_forward = MLP(
                mlp.linear("dense_h_to_4h", width, hidden, Parallel.COLUMN, bias=bias, act=act),
                mlp.linear("dense_4h_to_h", hidden, width, Parallel.ROW, bias=bias),
            )
            if not parallel:
                return SequentialBlock(
                    norm, attention, at.layer_norm("post_attention_layernorm", hidden, eps), feed_forward
                )
            return ParallelBlock(
                norm, attention, at.layer_norm("ln_mlp", hidden, eps) if two_norms else None, feed_forward
            )

        tied = config.flag("tie_word_embeddings", default=True)
        self.embed, self.head = body.embedding_and_head(
            "word_embeddings", sizes.vocab_size, hidden, head="lm_head", tied=tied
        )
        self.layers = [layer(body.at(f"h.{i}.")) for i in range(sizes.num_layers)]
        self.norm = body.layer_norm("ln_f", hidden, eps)
