"""Qwen2 (arXiv 2407.10671) and Qwen2.5 (arXiv 2412.15115): LLaMA with biases on q, k and v, and on nothing else.

`sliding_window` means something only where use_sliding_window is true; then the layers from max_window_layers on slide.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.attention import layer_windows
from octavo_engine.layers.config import ConfigReader
from octavo_engine.models.llama import Llama

__all__ = ["Qwen2"]


class Qwen2(Llama):
    """Qwen2ForCausalLM."""

    architecture = "Qwen2ForCausalLM"
    defaults: ClassVar = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.qkv_bias, self.out_bias = True, False
        slides = config.flag("use_sliding_window", default=False)
        window = config.integer("sliding_window", default=0, minimum=0) if slides else 0
        first = config.integer("max_window_layers", default=28, minimum=0)
        self.windows = layer_windows(config, window, lambda i: i >= first)
