"""SmolLM3 (Hugging Face 2025): LLaMA whose every fourth layer rotates nothing (NoPE, arXiv 2501.18795); tied although
configs don't say so. no_rope_layers, 0 where a layer has no positions, wins over no_rope_layer_interval."""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.attention import layer_windows
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.models.llama import Llama

__all__ = ["SmolLM3"]


class SmolLM3(Llama):
    """SmolLM3ForCausalLM."""

    architecture = "SmolLM3ForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        layers, every = len(self.ropes), config.integer("no_rope_layer_interval", default=4)
        rotates = config.get("no_rope_layers", default=[int((i + 1) % every != 0) for i in range(layers)])
        if len(rotates) != layers or set(rotates) - {0, 1} or not any(rotates):
            raise UnsupportedModel("no_rope_layers", rotates, f"0 or 1 for each of {layers} layers, not 0 for all")
        self.ropes = [rope if on else None for rope, on in zip(self.ropes, rotates, strict=True)]
        slides = config.flag("use_sliding_window", default=False)
        window = config.integer("sliding_window", default=0, minimum=0) if slides else 0
        self.windows = layer_windows(config, window, lambda i: not rotates[i])
