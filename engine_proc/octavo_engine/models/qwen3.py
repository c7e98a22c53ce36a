"""Qwen3 (arXiv 2505.09388): Qwen2 without its biases, and each head of q and k normalised before it is rotated.

The heads' size is explicit, 128 where the config lacks it; one RMSNorm weight [head_dim] serves all heads of q, one k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from octavo_engine.layers.attention import QKVEdit
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.qwen2 import Qwen2

__all__ = ["Qwen3"]


class Qwen3(Qwen2):
    """Qwen3ForCausalLM."""

    architecture = "Qwen3ForCausalLM"
    defaults: ClassVar = {**Qwen2.defaults, "head_dim": 128}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.qkv_bias = self.out_bias = config.flag("attention_bias", default=False)

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        return self.head_norms(loader)
