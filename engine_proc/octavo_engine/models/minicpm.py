"""MiniCPM (arXiv 2404.06395), 1B and 2B: LLaMA scaled for muP, by Granite's multipliers.

    x = e E[ids];  x += r Attention(N(x));  x += r MLP(N(x)), r = scale_depth / sqrt(layers);  logits = W N(x) / l

e is scale_emb, l hidden_size / dim_model_base.
"""

from __future__ import annotations

import math
from typing import ClassVar

from octavo_engine.layers.config import ConfigReader
from octavo_engine.models.granite import Granite

__all__ = ["MiniCPM"]


class MiniCPM(Granite):
    """MiniCPMForCausalLM."""

    architecture = "MiniCPMForCausalLM"
    defaults: ClassVar = {"tie_word_embeddings": True}  # published configs lack the key, and the files a head

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        config.only("num_experts", [0])
        as_granite = {
            "embedding_multiplier": config.number("scale_emb", default=1.0),
            "residual_multiplier": config.number("scale_depth", default=1.0) / math.sqrt(len(self.windows)),
            "logits_scaling": self.hidden / config.integer("dim_model_base", default=self.hidden),
            "attention_multiplier": self.scale,
        }
        super().read(ConfigReader({**config.values, **as_granite}), max_model_len)
