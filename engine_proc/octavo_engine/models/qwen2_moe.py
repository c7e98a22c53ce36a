"""Qwen1.5-MoE and Qwen2-57B-A14B (arXiv 2407.10671): Qwen2 with mixtures of experts and one that every token shares.

    MLP(x) = sum_e p_e MLP_e(x) + sigmoid(W_g x) MLP_shared(x)

The chosen experts' shares are left as the softmax over all gave them unless norm_topk_prob. Layers in mlp_only_layers,
and those that decoder_sparse_step passes over, have the plain feed-forward.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.blocks import FeedForward
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.moe import MoE, Routing, sparse_layers
from octavo_engine.models.qwen2 import Qwen2

__all__ = ["Qwen2MoE"]


class Qwen2MoE(Qwen2):
    """Qwen2MoeForCausalLM."""

    architecture = "Qwen2MoeForCausalLM"
    defaults: ClassVar = {
        **Qwen2.defaults,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("use_sliding_window", [False])
        self.qkv_bias = config.flag("qkv_bias", default=True)
        renormalise = config.flag("norm_topk_prob", default=False)
        self.routing = Routing.read(config, experts=60, top_k=4, renormalise=renormalise)
        self.sparse = sparse_layers(config)
        self.expert_width = config.integer("moe_intermediate_size")
        self.shared_width = config.integer("shared_expert_intermediate_size")

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        if not self.sparse[i]:
            return super().mlp(loader, i)
        at = loader.at("mlp.")
        shared = self.gated_mlp(at.at("shared_expert."), self.shared_width)
        return MoE(at, self.hidden, self.expert_width, self.routing, self.act, shared=shared)
