"""Mistral (arXiv 2310.06825): LLaMA with a sliding window in every layer.

The window counts the query itself. Configs without the key mean 4096; null (v0.2 and later) is full attention.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.config import ConfigReader
from octavo_engine.models.llama import Llama

__all__ = ["Mistral"]


class Mistral(Llama):
    """MistralForCausalLM."""

    architecture = "MistralForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "attention_bias": False,
        "sliding_window": 4096,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        window = config.integer("sliding_window", default=0, minimum=0)
        layers = len(self.windows)
        config.only("layer_types", [["sliding_attention" if window else "full_attention"] * layers])
        self.windows = [window] * layers
