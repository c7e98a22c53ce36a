"""InternLM (Shanghai AI Laboratory 2023): LLaMA with `bias` on q, k, v and o, and a `rotary` table in the config.

Its dynamic NTK stretches theta beyond the trained length, by a factor of 1. (Its own code turns all cached keys anew at
every token; here see layers/rope.py.)
InternLM3 (2025) is LLaMA with a key for the biases of q, k and v and one for all others.
"""

from __future__ import annotations

from typing import Any, ClassVar

from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.models.llama import Llama

__all__ = ["InternLM", "InternLM3"]


class InternLM(Llama):
    """InternLMForCausalLM."""

    architecture = "InternLMForCausalLM"

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        rotary: dict[str, Any] = config.get("rotary", default={"base": 10000, "type": "dynamic"})
        kinds: dict[str, dict[str, Any]] = {"origin": {}, "dynamic": {"rope_type": "dynamic", "factor": 1.0}}
        kind = rotary.get("type", "dynamic")
        if kind not in kinds or rotary.get("scaling_factor", 1.0) != 1.0:
            raise UnsupportedModel("rotary", rotary, "type origin or dynamic, scaling_factor 1.0")
        scaling = {"rope_theta": rotary.get("base", 10000), **kinds[kind]}
        super().read(ConfigReader({**config.values, "rope_parameters": scaling}), max_model_len)
        self.qkv_bias = self.out_bias = config.flag("bias", default=True)


class InternLM3(Llama):
    """InternLM3ForCausalLM."""

    architecture = "InternLM3ForCausalLM"
    defaults: ClassVar = {"num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 32768}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.qkv_bias = config.flag("qkv_bias", default=False)
        self.out_bias = self.mlp_bias = config.flag("bias", default=False)
