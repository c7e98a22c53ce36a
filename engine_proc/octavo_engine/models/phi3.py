"""Phi-3 (arXiv 2404.14219), Phi-3.5, Phi-4 (arXiv 2412.08905) and Phi-4-mini: LLaMA with q, k and v in one matrix,
gate and up in another.

Long contexts use LongRoPE; the published configs also call it "su", and one of the first "yarn". Phi-4-mini rotates
three quarters of a head.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.blocks import FeedForward
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.rope import rotary_dim
from octavo_engine.models.llama import Llama

__all__ = ["Phi3"]


class Phi3(Llama):
    """Phi3ForCausalLM."""

    architecture = "Phi3ForCausalLM"
    defaults: ClassVar = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        scaling = dict(config.get("rope_parameters", "rope_scaling", default={}))
        kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
        scaling.pop("type", None)
        if kind not in ("default", "longrope", "su", "yarn"):
            raise UnsupportedModel("rope_type", kind, "default, longrope, su, yarn")
        scaling["rope_type"] = "default" if kind == "default" else "longrope"
        if kind != "default":
            scaling.setdefault("original_max_position_embeddings", 4096)
        super().read(ConfigReader({**config.values, "rope_parameters": scaling}), max_model_len)
        self.windows = [config.integer("sliding_window", default=0, minimum=0)] * len(self.windows)

    def rotary_dim(self, config: ConfigReader) -> int:
        return rotary_dim(config, self.heads.dim)

    def qkv(self, loader: Loader) -> Linear:
        parts = self.heads.q, self.heads.kv, self.heads.kv
        return loader.linear("qkv_proj", sum(parts), self.hidden, Parallel.COLUMN, bias=self.qkv_bias, parts=parts)

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        return self.merged_mlp(loader.at("mlp."))
