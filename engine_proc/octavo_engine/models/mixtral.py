"""Mixtral (arXiv 2401.04088): LLaMA with a mixture of experts in each layer, whose shares add up to 1.

An expert's w1 is the gate, w3 what it gates, w2 the way down.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.blocks import FeedForward
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.moe import MoE, Routing
from octavo_engine.models.mistral import Mistral

__all__ = ["Mixtral"]


class Mixtral(Mistral):
    """MixtralForCausalLM."""

    architecture = "MixtralForCausalLM"
    defaults: ClassVar = {
        **Mistral.defaults,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("attention_bias", [False])
        self.routing = Routing.read(config, experts=8, top_k=2, renormalise=True)

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        names = ("experts.{}.w1", "experts.{}.w3", "experts.{}.w2")
        at = loader.at("block_sparse_moe.")
        return MoE(at, self.hidden, self.width, self.routing, self.act, names=names)
