"""GPT-2 (Radford et al. 2019): learned positions, pre-norm with LayerNorm, biases everywhere, a tied head.

The published files hold "Conv1D" weights, [in, out] and so transposed, and c_attn's columns are q; k; v. Names come
with or without `transformer.`; `h.N.attn.bias` is the causal mask, not a bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.batch import Batch
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.models.base import ModelConfig

__all__ = ["GPT2"]


class GPT2:
    """GPT2LMHeadModel."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("add_cross_attention", [False])
        hidden = config.integer("n_embd", "hidden_size")
        heads = config.integer("n_head", "num_attention_heads")
        if hidden % heads:
            raise UnsupportedModel("n_head", heads, f"a divisor of n_embd {hidden}")
        self.config = ModelConfig(
            architecture="GPT2LMHeadModel",
            num_layers=config.integer("n_layer", "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            hidden_size=hidden,
            vocab_size=config.integer("vocab_size"),
            max_position=config.integer("n_positions", "max_position_embeddings", default=1024),
            dtype=loader.dtype,
        )
        eps = config.number("layer_norm_epsilon", default=1e-5)
        body = loader.at("transformer." if "transformer.wte.weight" in loader else "")
        loader.ignore(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # causal-mask buffers

        tied = config.flag("tie_word_embeddings", default=True)
        self.embed, self.head = body.embedding_and_head(
            "wte", self.config.vocab_size, hidden, head="lm_head", tied=tied
        )
        self.embed_positions = body.embedding("wpe", self.config.max_position, hidden)
        self.layers = [
            GPT2Layer(config, self.config, body.at(f"h.{i}."), i, eps) for i in range(self.config.num_layers)
        ]
        self.norm = body.layer_norm("ln_f", hidden, eps)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embed(batch.token_ids)  # [T, H] float32
        self.embed_positions.add_to(x, batch.positions)
        for layer, kv in zip(self.layers, batch.kv, strict=True):
            layer(x, batch, kv)
        return x

    def logits(self, rows: Tensor) -> Tensor:
        return self.head(self.norm(rows), torch.float32)

    def hidden_states(self, rows: Tensor) -> Tensor:
        return self.norm(rows).float()


class GPT2Layer:
    """x += Attention(LN(x)); x += MLP(LN(x))."""

    __slots__ = ("attention", "attention_norm", "mlp", "mlp_norm")

    def __init__(self, config: ConfigReader, model: ModelConfig, loader: Loader, index: int, eps: float) -> None:
        hidden = model.hidden_size
        width = config.integer("n_inner", default=4 * hidden)
        act = config.activation("activation_function", default="gelu_new")
        scale = model.head_dim**-0.5 if config.flag("scale_attn_weights", default=True) else 1.0
        if config.flag("scale_attn_by_inverse_layer_idx", default=False):
            scale /= index + 1

        transposed = config.flag("transposed_weights", default=True)  # GGUF files hold them turned

        def conv1d(name: str, rows: int, columns: int, parallel: Parallel, **more: Any) -> Linear:
            return loader.linear(name, rows, columns, parallel, bias=True, transposed=transposed, **more)

        self.attention_norm = loader.layer_norm("ln_1", hidden, eps)
        self.attention = Attention(
            loader.ops,
            conv1d("attn.c_attn", 3 * hidden, hidden, Parallel.COLUMN, parts=(hidden,) * 3),
            conv1d("attn.c_proj", hidden, hidden, Parallel.ROW),
            num_heads=model.num_heads,
            scale=scale,
        )
        self.mlp_norm = loader.layer_norm("ln_2", hidden, eps)
        self.mlp = MLP(
            conv1d("mlp.c_fc", width, hidden, Parallel.COLUMN, act=act),
            conv1d("mlp.c_proj", hidden, width, Parallel.ROW),
        )

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> None:
        self.attention.add_to(x, self.attention_norm(x), batch, kv)
        self.mlp.add_to(x, self.mlp_norm(x))
