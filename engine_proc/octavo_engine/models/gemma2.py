"""Gemma 2 (arXiv 2408.00118): Gemma with norms behind attention and feed-forward too, and caps on scores and logits.

    x += N2(Attention(N1(x)));  x += N4(MLP(N3(x)))

Scores are q.k * query_pre_attn_scalar^-0.5, capped by 50 tanh(s / 50) before the mask; logits by 30 tanh(s / 30).
Layers 0, 2, 4, ... see a sliding window.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.attention import layer_windows
from octavo_engine.layers.blocks import Block, SandwichBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.gemma import Gemma

__all__ = ["Gemma2"]


class Gemma2(Gemma):
    """Gemma2ForCausalLM."""

    architecture = "Gemma2ForCausalLM"
    defaults: ClassVar = {
        **Gemma.defaults,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.scale = config.number("query_pre_attn_scalar") ** -0.5
        self.scores_cap = config.number("attn_logit_softcapping", default=0.0)
        self.softcap = config.number("final_logit_softcapping", default=0.0)
        self.windows = layer_windows(
            config, config.integer("sliding_window", default=0, minimum=0), lambda i: self.slides(config, i)
        )

    def slides(self, config: ConfigReader, i: int) -> bool:
        return i % 2 == 0

    def block(self, loader: Loader, i: int) -> Block:
        return SandwichBlock(
            self.new_norm(loader, "input_layernorm"),
            self.attention(loader.at("self_attn."), i),
            self.rms_norm(loader, "post_attention_layernorm"),
            self.new_norm(loader, "pre_feedforward_layernorm"),
            self.gated_mlp(loader.at("mlp."), self.width),
            self.rms_norm(loader, "post_feedforward_layernorm"),
        )
