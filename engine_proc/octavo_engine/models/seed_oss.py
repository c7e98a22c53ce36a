"""Seed-OSS (ByteDance 2025): LLaMA with biases of q, k and v, and of o by a key of its own."""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.config import ConfigReader
from octavo_engine.models.llama import Llama

__all__ = ["SeedOss"]


class SeedOss(Llama):
    """SeedOssForCausalLM."""

    architecture = "SeedOssForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.out_bias = config.flag("attention_out_bias", default=False)
