"""Granite 3 (IBM 2024): LLaMA with four multipliers, of the embeddings, scores, what blocks add, and logits.

    x = e E[ids];  x += r Attention(N(x)), scores a q.k;  x += r MLP(N(x));  logits = W N(x) / l

Dividing the stream by r leaves W N(x) as it is, but for eps: N of x / r with eps / r^2 is N of x with eps. So here the
stream starts at e / r and blocks add plainly; and 1 / l is in the last norm's weight.
"""

from __future__ import annotations

from octavo_engine.layers.config import ConfigReader
from octavo_engine.models.llama import Llama

__all__ = ["Granite"]


class Granite(Llama):
    """GraniteForCausalLM."""

    architecture = "GraniteForCausalLM"

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("position_embedding_type", ["rope"])
        share = config.number("residual_multiplier", default=1.0)
        self.embedding_scale = config.number("embedding_multiplier", default=1.0) / share
        self.eps /= share**2
        self.scale = config.number("attention_multiplier", default=1.0)
        self.logit_scale = 1.0 / config.number("logits_scaling", default=1.0)
