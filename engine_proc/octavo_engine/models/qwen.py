"""Qwen (arXiv 2309.16609), the first generation: LLaMA's blocks with a bias on c_attn alone, and the MLP's gate in w2.

Beyond the trained seq_length: use_logn_attn multiplies a query at position p by log_seq_length(p + 1), and
use_dynamic_ntk widens the rotary base, by powers of two of the prompt's length over the trained one; what follows the
prompt keeps its base. intermediate_size is twice the width of each of w1 and w2.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import SequentialBlock
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import Rope
from octavo_engine.models.base import Decoder, read_sizes
from octavo_engine.ops import Activation

__all__ = ["Qwen"]


class Qwen(Decoder):
    """QWenLMHeadModel."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("no_bias", [True])
        config.only("tie_word_embeddings", [False])
        config.only("rotary_pct", [1.0])
        trained = config.integer("seq_length", "n_positions", default=8192)
        longest = trained
        scaling: dict[str, Any] = {}
        if config.flag("use_dynamic_ntk", default=True):
            longest = max(trained, max_model_len or config.integer("max_position_embeddings", default=trained))
            # Qwen's alpha, 2^(ceil(log2(L / trained)) + 1) - 1, is the stretch of a factor of 2.
            scaling = {"rope_type": "dynamic", "factor": 2.0}
        sizes = read_sizes("QWenLMHeadModel", config, loader, max_position=longest)
        d = config.integer("kv_channels", default=sizes.head_dim)
        if d != sizes.head_dim:
            raise UnsupportedModel("kv_channels", d, f"hidden / heads, which is {sizes.head_dim}")
        hidden = sizes.hidden_size
        width = config.integer("intermediate_size", "ffn_hidden_size") // 2
        eps = config.number("layer_norm_epsilon", default=1e-6)
        scaling["rope_theta"] = config.number("rotary_emb_base", default=10000.0)
        positions = ConfigReader({"rope_parameters": scaling, "max_position_embeddings": trained})
        rope = Rope(positions, d, max_model_len or longest, by_prompt=True)
        cos_sin = self.rotation(rope, loader)
        self.config = replace(sizes, regimes=rope.regimes)
        logn = None
        if config.flag("use_logn_attn", default=True) and longest > trained:
            logn = _logn(rope.length, trained).repeat(len(rope.lengths)).to(loader.ops.device)
        ops = loader.ops

        def scale_queries(qkv: Tensor, positions: Tensor) -> None:
            assert logn is not None
            ops.scale_rows_(qkv, positions, logn, width=hidden)

        body = loader.at("transformer.")
        body.ignore(r".*\.rotary_emb\.inv_freq|.*\.attn\.(masked_bias|bias)")  # buffers

        def layer(at: Loader) -> SequentialBlock:
            return SequentialBlock(
                at.rms_norm("ln_1", hidden, eps),
                Attention(
                    at.ops,
                    at.linear("attn.c_attn", 3 * hidden, hidden, Parallel.COLUMN, bias=True, parts=(hidden,) * 3),
                    at.linear("attn.c_proj", hidden, hidden, Parallel.ROW, bias=False),
                    num_heads=sizes.num_heads,
                    scale=d**-0.5,
                    cos_sin=cos_sin,
                    edits=() if logn is None else (scale_queries,),
                ),
                at.rms_norm("ln_2", hidden, eps),
                MLP(
                    at.at("mlp.").linear(
                        ("w2", "w1"), (width,) * 2, hidden, Parallel.COLUMN, bias=False, act=Activation.SILU, gated=True
                    ),
                    at.linear("mlp.c_proj", hidden, width, Parallel.ROW, bias=False),
                ),
            )

        self.embed, self.head = body.embedding_and_head("wte", sizes.vocab_size, hidden, head="lm_head", tied=False)
        self.layers = [layer(body.at(f"h.{i}.")) for i in range(sizes.num_layers)]
        self.norm = body.rms_norm("ln_f", hidden, eps)


def _logn(length: int, trained: int) -> Tensor:
    """[length] float32: what a query at each position is multiplied with."""
    counts = torch.arange(1, length + 1, dtype=torch.float64).clamp(min=trained)
    return (counts.log() / math.log(trained)).float()
