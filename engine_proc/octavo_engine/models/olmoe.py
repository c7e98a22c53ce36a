"""OLMoE (arXiv 2409.02060): LLaMA with a mixture of experts in each layer, q and k normalised over their whole widths,
and with clip_qkv then q, k and v held within its bounds. intermediate_size is an expert's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from octavo_engine.layers.attention import Clip, QKVEdit
from octavo_engine.layers.blocks import FeedForward
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.moe import MoE, Routing
from octavo_engine.layers.norm import query_key_norms
from octavo_engine.models.llama import Llama

__all__ = ["Olmoe"]


class Olmoe(Llama):
    """OlmoeForCausalLM."""

    architecture = "OlmoeForCausalLM"
    defaults: ClassVar = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.clip = config.number("clip_qkv", default=0.0)
        renormalise = config.flag("norm_topk_prob", default=False)
        self.routing = Routing.read(config, experts=64, top_k=8, renormalise=renormalise)

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        weights = loader.vector("q_norm.weight", self.heads.q), loader.vector("k_norm.weight", self.heads.kv)
        norms = query_key_norms(self.ops, weights, None, self.eps, head_dim=None)
        return (*norms, Clip(self.ops, self.clip)) if self.clip else norms

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        return MoE(loader.at("mlp."), self.hidden, self.width, self.routing, self.act)
