"""StarCoder2 (arXiv 2402.19173): grouped-query attention over a sliding window, LayerNorm, a plain feed-forward with
tanh-approximated GELU, biases everywhere; the head is tied although configs don't say so."""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.attention import layer_windows
from octavo_engine.layers.blocks import FeedForward, Norm
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.llama import Llama

__all__ = ["Starcoder2"]


class Starcoder2(Llama):
    """Starcoder2ForCausalLM."""

    architecture = "Starcoder2ForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("norm_type", ["layer_norm"])
        config.only("mlp_type", ["default"])
        self.eps = config.number("norm_epsilon", default=1e-5)
        self.qkv_bias = self.out_bias = self.mlp_bias = config.flag("use_bias", default=True)
        window = config.integer("sliding_window", default=0, minimum=0)
        self.windows = layer_windows(config, window, lambda i: True)

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return loader.layer_norm(name, self.hidden, self.eps)

    def mlp(self, loader: Loader, i: int) -> FeedForward:
        return self.plain_mlp(loader.at("mlp."), "c_fc", "c_proj")
