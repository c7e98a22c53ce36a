"""Phi-1, 1.5 (arXiv 2309.05463) and 2: attention and a plain feed-forward side by side, biases everywhere.

    x += W_dense Attention(h) + W_fc2 gelu(W_fc1 h),  h = LayerNorm(x)

Part of each head is rotated (a half, in phi-2 0.4); the head of the model has a bias and is not the embedding. With
qk_layernorm each head of q and k goes through a LayerNorm before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from octavo_engine.layers.attention import QKVEdit
from octavo_engine.layers.blocks import Block, Norm, ParallelBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.norm import query_key_norms
from octavo_engine.layers.rope import rotary_dim
from octavo_engine.models.llama import Llama

__all__ = ["Phi"]


class Phi(Llama):
    """PhiForCausalLM."""

    architecture = "PhiForCausalLM"
    defaults: ClassVar = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
    norm_name = "model.final_layernorm"
    head_bias = True

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("tie_word_embeddings", [False])
        self.eps = config.number("layer_norm_eps")
        self.qkv_bias = self.out_bias = self.mlp_bias = True
        self.qk_norm = config.flag("qk_layernorm", default=False)

    def rotary_dim(self, config: ConfigReader) -> int:
        return rotary_dim(config, self.heads.dim, default=0.5)

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return loader.layer_norm(name, self.hidden, self.eps)

    def block(self, loader: Loader, i: int) -> Block:
        return ParallelBlock(
            self.new_norm(loader, "input_layernorm"),
            self.attention(loader.at("self_attn."), i, out="dense"),
            None,
            self.plain_mlp(loader.at("mlp."), "fc1", "fc2"),
        )

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        if not self.qk_norm:
            return ()
        heads, d = self.heads, self.heads.dim

        def both(part: str) -> tuple[Tensor, Tensor]:
            q, k = (loader.vector(f"{name}.{part}", d) for name in ("q_layernorm", "k_layernorm"))
            return q.repeat(heads.num), k.repeat(heads.num_kv)

        return query_key_norms(self.ops, both("weight"), both("bias"), self.eps, head_dim=d, centred=True)
