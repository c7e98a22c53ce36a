"""BLOOM (arXiv 2211.05100): ALiBi, a norm behind the embedding, biases everywhere, a tied head.

query_key_value's rows are a query, key and value for each head in turn. Names come with or without `transformer.`.
With apply_residual_connection_post_layernorm the stream goes on from the norms' results.
"""

from __future__ import annotations

from functools import partial

from octavo_engine.layers.alibi import alibi_slopes
from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import NormedResidualBlock, SequentialBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader, qkv_rows
from octavo_engine.layers.mlp import MLP
from octavo_engine.models.base import Decoder, read_sizes
from octavo_engine.ops import Activation

__all__ = ["Bloom"]


class Bloom(Decoder):
    """BloomForCausalLM."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        max_position = config.integer("seq_length", default=2048)  # of the training; ALiBi has no end
        self.config = sizes = read_sizes("BloomForCausalLM", config, loader, max_position=max_position)
        hidden, width = sizes.hidden_size, 4 * sizes.hidden_size
        eps = config.number("layer_norm_epsilon", default=1e-5)
        from_norm = config.flag("apply_residual_connection_post_layernorm", default=False)
        block = partial(NormedResidualBlock, loader.act_dtype) if from_norm else SequentialBlock
        slopes = alibi_slopes(sizes.num_heads).to(loader.ops.device)
        body = loader.at("transformer." if "transformer.word_embeddings.weight" in loader else "")

        def layer(at: Loader) -> SequentialBlock:
            attn, mlp = at.at("self_attention."), at.at("mlp.")
            return block(
                at.layer_norm("input_layernorm", hidden, eps, stream=from_norm),
                Attention(
                    at.ops,
                    attn.linear(
                        "query_key_value",
                        3 * hidden,
                        hidden,
                        Parallel.COLUMN,
                        bias=True,
                        parts=(hidden,) * 3,
                        rows=qkv_rows(sizes.num_heads, 1, sizes.head_dim),
                    ),
                    attn.linear("dense", hidden, hidden, Parallel.ROW, bias=True),
                    num_heads=sizes.num_heads,
                    scale=sizes.head_dim**-0.5,
                    alibi_slopes=slopes,
                ),
                at.layer_norm("post_attention_layernorm", hidden, eps, stream=from_norm),
                MLP(
                    mlp.linear("dense_h_to_4h", width, hidden, Parallel.COLUMN, bias=True, act=Activation.GELU_TANH),
                    mlp.linear("dense_4h_to_h", hidden, width, Parallel.ROW, bias=True),
                ),
            )

        tied = config.flag("tie_word_embeddings", default=True)
        self.embed, self.head = body.embedding_and_head(
            "word_embeddings", sizes.vocab_size, hidden, head="lm_head", tied=tied
        )
        self.embed_norm = body.layer_norm("word_embeddings_layernorm", hidden, eps, stream=True)
        self.layers = [layer(body.at(f"h.{i}.")) for i in range(sizes.num_layers)]
        self.norm = body.layer_norm("ln_f", hidden, eps)
