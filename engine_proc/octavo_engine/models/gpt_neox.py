"""GPT-NeoX (arXiv 2204.06745): Pythia, Dolly 2, StableLM-alpha.

Attention and feed-forward read the same x, each through its own norm (use_parallel_residual; false is one after the
other); rotary positions on the first rotary_pct of a head; biases everywhere; an untied head. query_key_value's rows
are a query, key and value for each head in turn.
"""

from __future__ import annotations

from dataclasses import replace

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import ParallelBlock, SequentialBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader, qkv_rows
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import Rope
from octavo_engine.models.base import Decoder, read_sizes

__all__ = ["GPTNeoX"]


class GPTNeoX(Decoder):
    """GPTNeoXForCausalLM."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        base = config.number("rotary_emb_base", default=10000.0)
        config = ConfigReader({"rope_theta": base} | dict(config.values))
        nested = ConfigReader(config.get("rope_parameters", default={}))
        share = nested.number("partial_rotary_factor", default=config.number("rotary_pct", default=0.25))
        sizes = read_sizes("GPTNeoXForCausalLM", config, loader, max_position=1)
        rope = Rope(config, int(sizes.head_dim * share), max_model_len)
        cos_sin = self.rotation(rope, loader)
        self.config = replace(sizes, max_position=rope.max_position, regimes=rope.regimes)
        hidden, width = sizes.hidden_size, config.integer("intermediate_size")
        eps = config.number("layer_norm_eps", default=1e-5)
        act = config.activation("hidden_act", default="gelu")
        bias = config.flag("attention_bias", default=True)
        block = ParallelBlock if config.flag("use_parallel_residual", default=True) else SequentialBlock
        tied = config.flag("tie_word_embeddings", default=False)
        head = "lm_head" if "lm_head.weight" in loader else "embed_out"
        body = loader.at("gpt_neox.")
        body.ignore(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)")  # buffers

        def layer(at: Loader) -> ParallelBlock | SequentialBlock:
            attn, mlp = at.at("attention."), at.at("mlp.")
            return block(
                at.layer_norm("input_layernorm", hidden, eps),
                Attention(
                    at.ops,
                    attn.linear(
                        "query_key_value",
                        3 * hidden,
                        hidden,
                        Parallel.COLUMN,
                        bias=bias,
                        parts=(hidden,) * 3,
                        rows=qkv_rows(sizes.num_heads, 1, sizes.head_dim),
                    ),
                    attn.linear("dense", hidden, hidden, Parallel.ROW, bias=bias),
                    num_heads=sizes.num_heads,
                    scale=sizes.head_dim**-0.5,
                    cos_sin=cos_sin,
                ),
                at.layer_norm("post_attention_layernorm", hidden, eps),
                MLP(
                    mlp.linear("dense_h_to_4h", width, hidden, Parallel.COLUMN, bias=True, act=act),
                    mlp.linear("dense_4h_to_h", hidden, width, Parallel.ROW, bias=True),
                ),
            )

        self.embed, self.head = body.embedding_and_head("embed_in", sizes.vocab_size, hidden, head=head, tied=tied)
        self.layers = [layer(body.at(f"layers.{i}.")) for i in range(sizes.num_layers)]
        self.norm = body.layer_norm("final_layer_norm", hidden, eps)
