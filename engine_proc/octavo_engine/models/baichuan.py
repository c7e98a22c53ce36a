"""Baichuan (2023) 7B and 13B, and Baichuan 2 (arXiv 2309.10305): LLaMA's blocks with q, k and v in one W_pack.

7B has rotary positions, 13B ALiBi; the configs tell it by max_position_embeddings, which 13B lacks. Baichuan 2
normalises the rows of its head, at every step as trained and once at load here; its configs have a z_loss_weight.
"""

from __future__ import annotations

from dataclasses import replace

from octavo_engine.layers.alibi import alibi_slopes
from octavo_engine.layers.attention import Attention
from octavo_engine.layers.blocks import SequentialBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.rope import Rope
from octavo_engine.models.base import Decoder, read_sizes

__all__ = ["Baichuan"]

_BAICHUAN2_VOCAB = 125696


class Baichuan(Decoder):
    """BaiChuanForCausalLM (7B of the first generation), BaichuanForCausalLM (all others)."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("tie_word_embeddings", [False])
        self.config = sizes = read_sizes("BaichuanForCausalLM", config, loader)
        hidden, width = sizes.hidden_size, config.integer("intermediate_size")
        eps = config.number("rms_norm_eps", default=1e-6)
        act = config.activation("hidden_act", default="silu")
        norm_head = "z_loss_weight" in config or sizes.vocab_size == _BAICHUAN2_VOCAB
        cos_sin = slopes = None
        if "max_position_embeddings" in config:
            rope = Rope(config, sizes.head_dim, max_model_len)
            self.config = replace(sizes, max_position=rope.max_position, regimes=rope.regimes)
            cos_sin = self.rotation(rope, loader)
        else:
            slopes = alibi_slopes(sizes.num_heads).to(loader.ops.device)
        body = loader.at("model.")
        body.ignore(r".*\.self_attn\.rotary_emb\.inv_freq")  # a buffer

        def qkv(attn: Loader) -> tuple[str | tuple[str, ...], int | tuple[int, ...]]:
            if "W_pack.weight" in attn or "q_proj.weight" not in attn:
                return "W_pack", 3 * hidden
            return ("q_proj", "k_proj", "v_proj"), (hidden,) * 3  # GGUF files

        def layer(at: Loader) -> SequentialBlock:
            attn, mlp = at.at("self_attn."), at.at("mlp.")
            return SequentialBlock(
                at.rms_norm("input_layernorm", hidden, eps),
                Attention(
                    at.ops,
                    attn.linear(*qkv(attn), hidden, Parallel.COLUMN, bias=False, parts=(hidden,) * 3),
                    attn.linear("o_proj", hidden, hidden, Parallel.ROW, bias=False),
                    num_heads=sizes.num_heads,
                    scale=sizes.head_dim**-0.5,
                    cos_sin=cos_sin,
                    alibi_slopes=slopes,
                ),
                at.rms_norm("post_attention_layernorm", hidden, eps),
                MLP(
                    mlp.linear(
                        ("gate_proj", "up_proj"), (width,) * 2, hidden, Parallel.COLUMN, bias=False, act=act, gated=True
                    ),
                    mlp.linear("down_proj", hidden, width, Parallel.ROW, bias=False),
                ),
            )

        self.embed, self.head = body.embedding_and_head(
            "embed_tokens", sizes.vocab_size, hidden, head="lm_head", tied=False, unit_rows=norm_head
        )
        self.layers = [layer(body.at(f"layers.{i}.")) for i in range(sizes.num_layers)]
        self.norm = body.rms_norm("norm", hidden, eps)
