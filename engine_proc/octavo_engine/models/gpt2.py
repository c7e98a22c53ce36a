"""GPT-2 (Radford et al. 2019): learned positions, pre-norm with LayerNorm, biases everywhere, a tied head.

The published files hold "Conv1D" weights, [in, out] and so transposed, and c_attn's columns are q; k; v. Names come
with or without `transformer.`; `h.N.attn.bias` is the causal mask, not a bias.
"""

from __future__ import annotations

from typing import Any

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import SequentialBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.models.base import Decoder, read_sizes

__all__ = ["GPT2"]


class GPT2(Decoder):
    """GPT2LMHeadModel."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("add_cross_attention", [False])
        longest = config.integer("n_positions", "max_position_embeddings", default=1024)
        self.config = sizes = read_sizes("GPT2LMHeadModel", config, loader, max_position=longest)
        hidden = sizes.hidden_size
        width = config.integer("n_inner", default=4 * hidden)
        act = config.activation("activation_function", default="gelu_new")
        eps = config.number("layer_norm_epsilon", default=1e-5)
        scale = sizes.head_dim**-0.5 if config.flag("scale_attn_weights", default=True) else 1.0
        by_layer = config.flag("scale_attn_by_inverse_layer_idx", default=False)
        transposed = config.flag("transposed_weights", default=True)  # GGUF files hold them turned
        tied = config.flag("tie_word_embeddings", default=True)
        body = loader.at("transformer." if "transformer.wte.weight" in loader else "")
        body.ignore(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # causal-mask buffers

        def layer(at: Loader, i: int) -> SequentialBlock:
            def conv1d(name: str, rows: int, columns: int, parallel: Parallel, **more: Any) -> Linear:
                return at.linear(name, rows, columns, parallel, bias=True, transposed=transposed, **more)

            return SequentialBlock(
                at.layer_norm("ln_1", hidden, eps),
                Attention(
                    at.ops,
                    conv1d("attn.c_attn", 3 * hidden, hidden, Parallel.COLUMN, parts=(hidden,) * 3),
                    conv1d("attn.c_proj", hidden, hidden, Parallel.ROW),
                    num_heads=sizes.num_heads,
                    scale=scale / (i + 1) if by_layer else scale,
                ),
                at.layer_norm("ln_2", hidden, eps),
                MLP(
                    conv1d("mlp.c_fc", width, hidden, Parallel.COLUMN, act=act),
                    conv1d("mlp.c_proj", hidden, width, Parallel.ROW),
                ),
            )

        self.embed, self.head = body.embedding_and_head("wte", sizes.vocab_size, hidden, head="lm_head", tied=tied)
        self.embed_positions = body.embedding("wpe", longest, hidden)
        self.layers = [layer(body.at(f"h.{i}."), i) for i in range(sizes.num_layers)]
        self.norm = body.layer_norm("ln_f", hidden, eps)
