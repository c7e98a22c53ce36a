"""Mistral (arXiv 2310.06825): LLaMA with a sliding window in every layer.

The window counts the query itself. Configs without the key mean 4096; null (v0.2 and later) is full attention.
"""

from __future__ import annotations

from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.llama import Llama

__all__ = ["Mistral"]


class Mistral(Llama):
    """MistralForCausalLM."""

    architecture = "MistralForCausalLM"

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        window = 4096 if "sliding_window" not in config else config.integer("sliding_window", default=0, minimum=0)
        layers = config.integer("num_hidden_layers")
        config.only("layer_types", [["sliding_attention" if window else "full_attention"] * layers])
        defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "attention_bias": False}
        config = ConfigReader(defaults | dict(config.values))
        super().__init__(config, loader, max_model_len, sliding_window=window)
