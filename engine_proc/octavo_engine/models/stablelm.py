"""StableLM 3B (stablelm_epoch), StableLM 2 1.6B and 12B (arXiv 2402.17834): LLaMA with LayerNorm and partial rotation.

12B normalises q and k before rotation, each head by a weight of its own and without bias, and adds attention and
feed-forward of one norm side by side. The first configs call their keys rope_pct and norm_eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from octavo_engine.layers.attention import QKVEdit
from octavo_engine.layers.blocks import Block, Norm, ParallelBlock
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.norm import query_key_norms
from octavo_engine.layers.rope import rotary_dim
from octavo_engine.models.llama import Llama

__all__ = ["StableLM"]


class StableLM(Llama):
    """StableLmForCausalLM, StableLMEpochForCausalLM."""

    architecture = "StableLmForCausalLM"
    defaults: ClassVar = {"max_position_embeddings": 4096}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        config.only("rotary_scaling_factor", [1.0])
        self.eps = config.number("layer_norm_eps", "norm_eps", default=1e-5)
        self.qkv_bias, self.out_bias = config.flag("use_qkv_bias", default=False), False
        self.qk_norm = config.flag("qk_layernorm", default=False)
        self.parallel = config.flag("use_parallel_residual", default=False)

    def rotary_dim(self, config: ConfigReader) -> int:
        return rotary_dim(config, self.heads.dim, default=0.25)

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return loader.layer_norm(name, self.hidden, self.eps)

    def block(self, loader: Loader, i: int) -> Block:
        if not self.parallel:
            return super().block(loader, i)
        norm = self.new_norm(loader, "input_layernorm")
        return ParallelBlock(norm, self.attention(loader.at("self_attn."), i), None, self.mlp(loader, i))

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        if not self.qk_norm:
            return ()
        heads, d = self.heads, self.heads.dim

        def every(name: str, count: int) -> Tensor:
            return torch.cat([loader.vector(f"{name}.norms.{head}.weight", d) for head in range(count)])

        weights = every("q_layernorm", heads.num), every("k_layernorm", heads.num_kv)
        return query_key_norms(self.ops, weights, None, self.eps, head_dim=d, centred=True)
