"""ERNIE 4.5 (Baidu 2025), the dense models: LLaMA that rotates neighbouring dimensions, tied, with one switch for all
biases."""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.config import ConfigReader
from octavo_engine.models.llama import Llama

__all__ = ["Ernie45"]


class Ernie45(Llama):
    """Ernie4_5ForCausalLM."""

    architecture = "Ernie4_5ForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    }
    interleaved = True

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.qkv_bias = self.out_bias = self.mlp_bias = config.flag("use_bias", default=False)
