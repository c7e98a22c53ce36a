"""Gemma (arXiv 2403.08295): LLaMA whose norms multiply by 1 + w, whose embeddings are multiplied by sqrt(hidden), and
whose feed-forward is gated by tanh-approximated GELU, whatever the first configs' hidden_act says; the head is tied.

The factor of the embeddings is rounded to the type of the activations, as training did.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from octavo_engine.layers.blocks import Norm
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.norm import RMSNorm
from octavo_engine.models.llama import Llama
from octavo_engine.ops import Activation

__all__ = ["Gemma"]


class Gemma(Llama):
    """GemmaForCausalLM."""

    architecture = "GemmaForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        for key in ("hidden_act", "hidden_activation"):
            config.only(key, ["gelu", "gelu_pytorch_tanh"])
        config.only("use_bidirectional_attention", [False])
        self.act = Activation.GELU_TANH
        self.embedding_scale = float(torch.tensor(self.hidden**0.5).to(self.act_dtype))

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return self.rms_norm(loader, name)

    def rms_norm(self, loader: Loader, name: str) -> RMSNorm:
        return loader.rms_norm(name, self.hidden, self.eps, offset=1.0)
