"""InternLM2 (arXiv 2403.17297): LLaMA under other names, with q, k and v in one matrix.

wqkv's rows are, for each key-value head, the query heads that share it, its key, its value. w1 is the gate, w3 what it
gates, w2 the way down.
"""

from __future__ import annotations

from octavo_engine.layers.blocks import Block, SequentialBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.loading import Loader, qkv_rows
from octavo_engine.models.llama import Llama

__all__ = ["InternLM2"]


class InternLM2(Llama):
    """InternLM2ForCausalLM."""

    architecture = "InternLM2ForCausalLM"
    embed_name, head_name = "model.tok_embeddings", "output"

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.qkv_bias = self.out_bias = config.flag("bias", default=True)

    def block(self, loader: Loader, i: int) -> Block:
        return SequentialBlock(
            self.new_norm(loader, "attention_norm"),
            self.attention(loader.at("attention."), i, out="wo"),
            self.new_norm(loader, "ffn_norm"),
            self.gated_mlp(loader.at("feed_forward."), self.width, "w1", "w3", "w2"),
        )

    def qkv(self, loader: Loader) -> Linear:
        heads = self.heads
        parts = heads.q, heads.kv, heads.kv
        rows = qkv_rows(heads.num_kv, heads.num // heads.num_kv, heads.dim)
        return loader.linear(
            "wqkv", sum(parts), self.hidden, Parallel.COLUMN, bias=self.qkv_bias, parts=parts, rows=rows
        )
