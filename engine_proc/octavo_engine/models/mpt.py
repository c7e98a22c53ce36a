"""MPT (MosaicML 2023): ALiBi or learned positions, no biases as published, exact GELU, a tied head.

Wqkv's rows are all queries; keys; values. clip_qkv bounds all three, then qk_ln normalises q and k over their whole
widths. Storywriter has alibi_bias_max 16, so that its slopes end at 2^-16.
"""

from __future__ import annotations

from collections.abc import Iterator

from octavo_engine.layers.alibi import alibi_slopes
from octavo_engine.layers.attention import Attention, Clip, QKVEdit
from octavo_engine.layers.blocks import SequentialBlock
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.mlp import MLP
from octavo_engine.layers.norm import query_key_norms
from octavo_engine.models.base import Decoder, read_sizes
from octavo_engine.ops import Activation

__all__ = ["MPT"]


class MPT(Decoder):
    """MPTForCausalLM, MptForCausalLM."""

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        config.only("norm_type", ["low_precision_layernorm", "layernorm"])
        attn = ConfigReader(config.get("attn_config", default={}))
        for key in ("prefix_lm", "attn_uses_sequence_id", "rope", "qk_gn"):
            attn.only(key, [False])
        attn.only("sliding_window_size", [-1])
        heads = config.integer("n_heads", "num_attention_heads")
        kv_heads = _kv_heads(attn, heads)
        self.config = sizes = read_sizes("MPTForCausalLM", config, loader, kv_heads=kv_heads)
        hidden, d = sizes.hidden_size, sizes.head_dim
        width = int(config.number("expansion_ratio", default=4) * hidden)
        bias = not config.flag("no_bias", default=True)
        norm_eps = config.number("layer_norm_epsilon", default=1e-5)
        alibi = attn.flag("alibi", default=True)
        slopes = alibi_slopes(heads, attn.number("alibi_bias_max", default=8)).to(loader.ops.device)
        parts = (hidden, kv_heads * d, kv_heads * d)
        clip, qk_ln = attn.number("clip_qkv", default=0), attn.flag("qk_ln", default=False)
        scale = attn.number("softmax_scale", default=d**-0.5)
        body = loader.at("transformer.")

        def edits(at: Loader) -> Iterator[QKVEdit]:
            if clip:
                yield Clip(at.ops, clip)
            if qk_ln:
                weights = at.vector("q_ln.weight", parts[0]), at.vector("k_ln.weight", parts[1])
                shifts = (at.vector("q_ln.bias", parts[0]), at.vector("k_ln.bias", parts[1])) if bias else None
                yield from query_key_norms(at.ops, weights, shifts, 1e-5, head_dim=None, centred=True)

        def layer(at: Loader) -> SequentialBlock:
            return SequentialBlock(
                at.layer_norm("norm_1", hidden, norm_eps, bias=bias),
                Attention(
                    at.ops,
                    at.linear("attn.Wqkv", sum(parts), hidden, Parallel.COLUMN, bias=bias, parts=parts),
                    at.linear("attn.out_proj", hidden, hidden, Parallel.ROW, bias=bias),
                    num_heads=heads,
                    scale=scale,
                    alibi_slopes=slopes if alibi else None,
                    edits=tuple(edits(at.at("attn."))),
                ),
                at.layer_norm("norm_2", hidden, norm_eps, bias=bias),
                MLP(
                    at.linear("ffn.up_proj", width, hidden, Parallel.COLUMN, bias=bias, act=Activation.GELU),
                    at.linear("ffn.down_proj", hidden, width, Parallel.ROW, bias=bias),
                ),
            )

        tied = config.flag("tie_word_embeddings", default=True)
        self.embed, self.head = body.embedding_and_head("wte", sizes.vocab_size, hidden, head="lm_head", tied=tied)
        if not alibi and config.flag("learned_pos_emb", default=True):
            self.embed_positions = body.embedding("wpe", sizes.max_position, hidden)
        self.layers = [layer(body.at(f"blocks.{i}.")) for i in range(sizes.num_layers)]
        # The head has no bias, so the logits' factor may as well be its input's.
        self.logit_scale = _logit_scale(config, hidden)
        self.norm = body.layer_norm("norm_f", hidden, norm_eps, bias=bias, scale=self.logit_scale)


def _kv_heads(attn: ConfigReader, heads: int) -> int:
    kind = attn.get("attn_type", default="multihead_attention")
    counts = {
        "multihead_attention": heads,
        "multiquery_attention": 1,
        "grouped_query_attention": attn.integer("kv_n_heads", default=heads),
    }
    if kind not in counts:
        raise UnsupportedModel("attn_type", kind, ", ".join(counts))
    return counts[kind]


def _logit_scale(config: ConfigReader, hidden: int) -> float:
    if config.get("logit_scale", default=None) == "inv_sqrt_d_model":
        return float(hidden**-0.5)
    return config.number("logit_scale", default=1.0)
