"""Phi-1, 1.5 (arXiv 2309.05463) and 2: attention and a plain feed-forward side by side, biases everywhere.

    x += W_dense Attention(h) + W_fc2 gelu(W_fc1 h),  h = LayerNorm(x)

Part of each head is rotated (a half, in phi-2 0.4); the head of the model has a bias and is not the embedding. With
qk_layernorm each head of q and k goes through a LayerNorm before.

The first uploads have GPT-2's names of the sizes, q, k and v in one Wqkv, and other names: under `transformer.h.`
(phi-msft) or all in one row of `layers.`, the embedding first and the head last (mixformer-sequential).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from octavo_engine.layers.attention import QKVEdit
from octavo_engine.layers.blocks import Block, Norm, ParallelBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Linear, Parallel
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
    input_norm, attention_name, out_name = "input_layernorm", "self_attn.", "dense"
    first_layer = ""  # of the first uploads' layers, with their number to follow

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        if "n_embd" in config:
            config = self.first_upload(config, loader)
        super().__init__(config, loader, max_model_len)

    def first_upload(self, config: ConfigReader, loader: Loader) -> ConfigReader:
        """Take its names; its config as it would be published later."""
        self.input_norm, self.attention_name, self.out_name = "ln", "mixer.", "out_proj"
        if "transformer.embd.wte.weight" in loader:
            self.first_layer, self.first_number = "transformer.h.", 0
            self.embed_name, last = "transformer.embd.wte", "lm_head"
        else:
            self.first_layer, self.first_number = "layers.", 1
            self.embed_name, last = "layers.0.wte", f"layers.{config.integer('n_layer') + 1}"
        self.norm_name, self.head_name = f"{last}.ln", f"{last}.linear"
        multiple = config.integer("pad_vocab_size_multiple", default=1)
        hidden, heads = config.integer("n_embd"), config.integer("n_head")
        return ConfigReader(
            {
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "num_key_value_heads": config.integer("n_head_kv", default=heads),
                "num_hidden_layers": config.integer("n_layer"),
                "intermediate_size": config.integer("n_inner", default=4 * hidden),
                "max_position_embeddings": config.integer("n_positions", default=2048),
                "vocab_size": -(-config.integer("vocab_size") // multiple) * multiple,
                "hidden_act": config.get("activation_function", default="gelu_new"),
                "layer_norm_eps": config.number("layer_norm_epsilon", default=1e-5),
                "rotary_dim": config.integer("rotary_dim", default=32),
            }
        )

    def layer_name(self, i: int) -> str:
        return f"{self.first_layer}{i + self.first_number}." if self.first_layer else super().layer_name(i)

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("tie_word_embeddings", [False])
        self.eps = config.number("layer_norm_eps")
        self.qkv_bias = self.out_bias = self.mlp_bias = True
        self.qk_norm = config.flag("qk_layernorm", default=False)

    def rotary_dim(self, config: ConfigReader) -> int:
        if "rotary_dim" in config:
            return config.integer("rotary_dim")
        return rotary_dim(config, self.heads.dim, default=0.5)

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return loader.layer_norm(name, self.hidden, self.eps)

    def block(self, loader: Loader, i: int) -> Block:
        return ParallelBlock(
            self.new_norm(loader, self.input_norm),
            self.attention(loader.at(self.attention_name), i, out=self.out_name),
            None,
            self.plain_mlp(loader.at("mlp."), "fc1", "fc2"),
        )

    def qkv(self, loader: Loader) -> Linear:
        if not self.first_layer:
            return super().qkv(loader)
        parts = self.heads.q, self.heads.kv, self.heads.kv
        return loader.linear("Wqkv", sum(parts), self.hidden, Parallel.COLUMN, bias=True, parts=parts)

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        if not self.qk_norm:
            return ()
        heads, d = self.heads, self.heads.dim

        def both(part: str) -> tuple[Tensor, Tensor]:
            q, k = (loader.vector(f"{name}.{part}", d) for name in ("q_layernorm", "k_layernorm"))
            return q.repeat(heads.num), k.repeat(heads.num_kv)

        return query_key_norms(self.ops, both("weight"), both("bias"), self.eps, head_dim=d, centred=True)
