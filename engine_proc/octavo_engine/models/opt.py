"""OPT (arXiv 2205.01068), 125m to 66b, and Galactica (arXiv 2211.09085).

Learned positions whose table has two unused rows before position 0, LayerNorm, a plain feed-forward with biases, a
tied head. Pre-norm but for 350m, which norms after each addition, has no final norm, and embeds in fewer
dimensions than it computes in (project_in, project_out).
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_engine.layers.attention import Attention
from octavo_engine.layers.batch import Batch
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.models.base import Decoder, ModelConfig, read_sizes

__all__ = ["OPT"]

_POSITION_OFFSET = 2


class OPT(Decoder):
    """OPTForCausalLM."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        self.config = read_sizes("OPTForCausalLM", config, loader)
        hidden = self.config.hidden_size
        vocab_size, width = self.config.vocab_size, config.integer("word_embed_proj_dim", default=hidden)
        pre_norm = config.flag("do_layer_norm_before", default=True)
        affine = config.flag("layer_norm_elementwise_affine", default=True)
        no_final_norm = config.flag("_remove_final_layer_norm", default=False)
        decoder = loader.at("model.decoder." if "model.decoder.embed_tokens.weight" in loader else "decoder.")
        rows = self.config.max_position + _POSITION_OFFSET

        self.ops, self.act_dtype = loader.ops, loader.act_dtype
        tied = config.flag("tie_word_embeddings", default=True)
        self.embed, self.head = decoder.embedding_and_head("embed_tokens", vocab_size, width, head="lm_head", tied=tied)
        self.embed_positions = decoder.embedding("embed_positions", rows, hidden, skip=_POSITION_OFFSET)
        self.project_in = self.project_out = self.final_norm = None
        if width != hidden:
            self.project_in = decoder.linear("project_in", hidden, width, Parallel.REPLICATED, bias=False)
            self.project_out = decoder.linear(
                "project_out", width, hidden, Parallel.REPLICATED, bias=False, adapted=False
            )
        layer = PreNormLayer if pre_norm else PostNormLayer
        self.layers = [
            layer(config, self.config, decoder.at(f"layers.{i}."), affine) for i in range(self.config.num_layers)
        ]
        if pre_norm and not no_final_norm:
            self.final_norm = decoder.layer_norm("final_layer_norm", hidden, affine=affine)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embed(batch.token_ids)  # [T, E] float32
        if self.project_in is not None:
            x = self.project_in(self.ops.cast(x, self.act_dtype), torch.float32)  # [T, H]
        assert self.embed_positions is not None
        self.embed_positions.add_to(x, batch.positions)
        for layer, kv in zip(self.layers, batch.kv, strict=True):
            x = layer(x, batch, kv)
        return x

    def logits(self, rows: Tensor) -> Tensor:
        return self.head(self._final(rows), torch.float32)

    def hidden_states(self, rows: Tensor) -> Tensor:
        return self._final(rows).float()

    def _final(self, rows: Tensor) -> Tensor:
        h = self.ops.cast(rows, self.act_dtype) if self.final_norm is None else self.final_norm(rows)
        return h if self.project_out is None else self.project_out(h)  # [L, E]


class PreNormLayer:
    """x += Attention(LN(x)); x += MLP(LN(x)). The checkpoint's `final_layer_norm` of a layer is the MLP's."""

    __slots__ = ("act_dtype", "attention", "attention_norm", "mlp", "mlp_norm", "ops")

    def __init__(self, config: ConfigReader, model: ModelConfig, loader: Loader, affine: bool) -> None:
        hidden, width = model.hidden_size, config.integer("ffn_dim")
        bias = config.flag("enable_bias", default=True)
        act = config.activation("activation_function", default="relu")
        attn = loader.at("self_attn.")
        self.ops, self.act_dtype = loader.ops, loader.act_dtype
        self.attention = Attention(
            loader.ops,
            attn.linear(("q_proj", "k_proj", "v_proj"), (hidden,) * 3, hidden, Parallel.COLUMN, bias=bias),
            attn.linear("out_proj", hidden, hidden, Parallel.ROW, bias=bias),
            num_heads=model.num_heads,
            scale=model.head_dim**-0.5,
        )
        self.attention_norm = loader.layer_norm("self_attn_layer_norm", hidden, affine=affine)
        self.mlp = MLP(
            loader.linear("fc1", width, hidden, Parallel.COLUMN, bias=bias, act=act),
            loader.linear("fc2", hidden, width, Parallel.ROW, bias=bias),
        )
        self.mlp_norm = loader.layer_norm("final_layer_norm", hidden, affine=affine)

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        self.attention.add_to(x, self.attention_norm(x), batch, kv)
        self.mlp.add_to(x, self.mlp_norm(x))
        return x


class PostNormLayer(PreNormLayer):
    """x = LN(x + Attention(x)); x = LN(x + MLP(x)): 350m."""

    __slots__ = ()

    def __init__(self, config: ConfigReader, model: ModelConfig, loader: Loader, affine: bool) -> None:
        super().__init__(config, model, loader, affine)
        # Here a norm's result is the residual stream, which stays float32.
        self.attention_norm.out_dtype = self.mlp_norm.out_dtype = torch.float32

    def __call__(self, x: Tensor, batch: Batch, kv: tuple[Tensor, Tensor]) -> Tensor:
        self.attention.add_to(x, self.ops.cast(x, self.act_dtype), batch, kv)
        x = self.attention_norm(x)
        self.mlp.add_to(x, self.ops.cast(x, self.act_dtype))
        return self.mlp_norm(x)
