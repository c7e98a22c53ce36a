"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with mixtures of experts, none of them shared; see qwen2_moe for the keys."""

from __future__ import annotations

from octavo_engine.layers.blocks import FeedForward
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.moe import MoE
from octavo_engine.models.qwen2_moe import Qwen2MoE
from octavo_engine.models.qwen3 import Qwen3

__all__ = ["Qwen3MoE"]


class Qwen3MoE(Qwen3):
    """Qwen3MoeForCausalLM."""

    architecture = "Qwen3MoeForCausalLM"
    defaults = {
        **Qwen3.defaults,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
    }
    read_experts = Qwen2MoE.read_experts

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("use_sliding_window", [False])
        self.read_experts(config, experts=128, top_k=8)

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        if not self.sparse[i]:
            return super().mlp(loader, i)
        return MoE(loader.at("mlp."), self.hidden, self.expert_width, self.routing, self.act)
