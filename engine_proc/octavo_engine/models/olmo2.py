"""OLMo 2 (arXiv 2501.00656): norms behind attention and feed-forward instead of before, and q and k normalised over
their whole widths.

    x += N1(W_o Attention(x));  x += N2(MLP(x))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from octavo_engine.layers.attention import QKVEdit
from octavo_engine.layers.blocks import Block, PostNormBlock
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.norm import query_key_norms
from octavo_engine.models.llama import Llama

__all__ = ["Olmo2"]


class Olmo2(Llama):
    """Olmo2ForCausalLM."""

    architecture = "Olmo2ForCausalLM"
    defaults: ClassVar = {"rms_norm_eps": 1e-5}

    def block(self, loader: Loader, i: int) -> Block:
        return PostNormBlock(
            self.act_dtype,
            self.attention(loader.at("self_attn."), i),
            loader.rms_norm("post_attention_layernorm", self.hidden, self.eps),
            self.gated_mlp(loader.at("mlp."), self.width),
            loader.rms_norm("post_feedforward_layernorm", self.hidden, self.eps),
        )

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        weights = loader.vector("q_norm.weight", self.heads.q), loader.vector("k_norm.weight", self.heads.kv)
        return query_key_norms(self.ops, weights, None, self.eps, head_dim=None)
