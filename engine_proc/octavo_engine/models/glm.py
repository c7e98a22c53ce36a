"""GLM-4 (arXiv 2406.12793), as transformers has it, and GLM-4-0414: LLaMA that rotates neighbouring dimensions of half
a head, with biases of q, k and v, gate and up in one matrix.

0414 norms what attention and feed-forward give, too, before it is added.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.blocks import Block, SandwichBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import rotary_dim
from octavo_engine.models.llama import Llama

__all__ = ["Glm", "Glm4"]


class Glm(Llama):
    """GlmForCausalLM."""

    architecture = "GlmForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-7,
        "attention_bias": True,
    }
    interleaved = True

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.out_bias = False

    def rotary_dim(self, config: ConfigReader) -> int:
        return rotary_dim(config, self.heads.dim, default=0.5)

    def mlp(self, loader: Loader, i: int) -> MLP:
        return self.merged_mlp(loader.at("mlp."))


class Glm4(Glm):
    """Glm4ForCausalLM."""

    architecture = "Glm4ForCausalLM"

    def block(self, loader: Loader, i: int) -> Block:
        return SandwichBlock(
            self.new_norm(loader, "input_layernorm"),
            self.attention(loader.at("self_attn."), i),
            loader.rms_norm("post_self_attn_layernorm", self.hidden, self.eps),
            self.new_norm(loader, "post_attention_layernorm"),
            self.mlp(loader, i),
            loader.rms_norm("post_mlp_layernorm", self.hidden, self.eps),
        )
