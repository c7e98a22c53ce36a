"""GGUF files of the older families: falcon, gpt2, gptj, gptneox, mpt, baichuan, bloom, starcoder and qwen.

llama.cpp's converter gives the rows of a merged q, k and v as all queries; all keys; all values, where some families
publish them head by head; they are put back in that order. A tied head may be written out again; it then counts as a
head of its own, for it may be stored in another type than the embedding. ggml has one GELU, by tanh, and files don't
say which a model was trained with: the config's is what the family publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from octavo_engine.weights.gguf_checkpoint import Keys, Layout, RowOrder, as_stored, paired_rows
from octavo_engine.weights.gguf_file import GGUFFile
from octavo_engine.weights.source import SourceError

__all__ = ["OLDER"]

_GPT = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}


def _megatron(attention: str) -> dict[str, str]:
    """Names of Megatron's layers, in BLOOM, Falcon and GPT-NeoX."""
    return {
        "attn_norm": "input_layernorm",
        "attn_qkv": f"{attention}.query_key_value",
        "attn_output": f"{attention}.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
        "token_embd": "transformer.word_embeddings",
        "token_embd_norm": "transformer.word_embeddings_layernorm",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    }


class _Metadata:
    """Typed reads of one architecture's keys."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.kind = file, file.metadata["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.file.metadata.get(f"{self.kind}.{key}", default)
        if isinstance(value, list):
            raise SourceError(f"{self.file.path}: {self.kind}.{key} differs from layer to layer; one number is read")
        return value

    def require(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise SourceError(f"{self.file.path}: the metadata lacks {self.kind}.{key}")
        return value

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    @property
    def heads(self) -> int:
        return int(self.require("attention.head_count"))

    @property
    def kv_heads(self) -> int:
        return int(self.get("attention.head_count_kv", self.heads))

    @property
    def head_dim(self) -> int:
        return int(self.require("embedding_length")) // self.heads

    @property
    def eps(self) -> Any:
        return self.require("attention.layer_norm_epsilon")

    def gpt_sizes(self) -> dict[str, Any]:
        """In GPT-2's spelling."""
        length, width = self.require("context_length"), self.require("feed_forward_length")
        return {"n_positions": length, "n_inner": width, "layer_norm_epsilon": self.eps}

    def common(self) -> dict[str, Any]:
        """The keys that all families have, in one spelling that every one of them reads."""
        embedding = self.file.tensors.get("token_embd.weight")
        scaling = self.get("rope.scaling.type", "none")
        if scaling != "none":
            raise SourceError(f"{self.file.path}: {self.kind}.rope.scaling.type {scaling!r}; 'none' is read")
        return {
            "hidden_size": self.require("embedding_length"),
            "num_hidden_layers": self.require("block_count"),
            "num_attention_heads": self.heads,
            "vocab_size": embedding.shape[0] if embedding is not None else 0,
            "tie_word_embeddings": not self.has("output.weight"),
            "bos_token_id": self.file.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.file.metadata.get("tokenizer.ggml.eos_token_id"),
        }


def _by_head(kv_heads: int, group: int, head_dim: int) -> RowOrder:
    """For attn_qkv: published are, for each key-value head, `group` queries, a key and a value."""
    q, kv = kv_heads * group * head_dim, kv_heads * head_dim
    queries = torch.arange(q).view(kv_heads, group, head_dim)
    keys = torch.arange(q, q + kv).view(kv_heads, 1, head_dim)
    published = torch.cat((queries, keys, keys + kv), dim=1).flatten()

    def rows(name: str, count: int) -> Tensor | None:
        return published if name.startswith("attn_qkv.") else None

    return rows


Found = tuple[dict[str, Any], Mapping[str, str], str, RowOrder]
"""config's own keys, and names, layers and rows as Layout has them."""


def _falcon(meta: _Metadata) -> Found:
    two_norms = meta.has("blk.0.attn_norm_2.weight")
    new = two_norms or meta.kv_heads > 1
    config = {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "new_decoder_architecture": new,
        "multi_query": meta.kv_heads == 1,
        "num_kv_heads": meta.kv_heads,
        "num_ln_in_parallel_attn": (2 if two_norms else 1) if new else None,
        "ffn_hidden_size": meta.get("feed_forward_length"),
        "max_position_embeddings": meta.require("context_length"),
        "layer_norm_epsilon": meta.eps,
        "rope_theta": meta.get("rope.freq_base", 10000.0),
    }
    names = _megatron("self_attention") | ({"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} if two_norms else {})
    return config, names, "transformer.h.", _by_head(meta.kv_heads, meta.heads // meta.kv_heads, meta.head_dim)


def _gpt2(meta: _Metadata) -> Found:
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **meta.gpt_sizes(),
        "transposed_weights": False,  # the converter turned them
    }
    return config, _GPT, "transformer.h.", as_stored


def _starcoder(meta: _Metadata) -> Found:
    if meta.kv_heads != 1:
        raise SourceError(f"{meta.file.path}: starcoder with {meta.kv_heads} key-value heads; 1 is read")
    config = {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "multi_query": True,
        **meta.gpt_sizes(),
    }
    return config, _GPT, "transformer.h.", as_stored


def _gptj(meta: _Metadata) -> Found:
    config = {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        **meta.gpt_sizes(),
        "rotary_dim": meta.require("rope.dimension_count"),
    }
    names = {
        **_GPT,
        **{f"attn_{part}": f"attn.{part}_proj" for part in "qkv"},
        "attn_output": "attn.out_proj",
        "ffn_up": "mlp.fc_in",
        "ffn_down": "mlp.fc_out",
    }
    return config, names, "transformer.h.", as_stored


def _gptneox(meta: _Metadata) -> Found:
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "intermediate_size": meta.require("feed_forward_length"),
        "max_position_embeddings": meta.require("context_length"),
        "rotary_pct": meta.require("rope.dimension_count") / meta.head_dim,
        "rotary_emb_base": meta.get("rope.freq_base", 10000.0),
        "use_parallel_residual": meta.get("use_parallel_residual", True),
        "layer_norm_eps": meta.eps,
        "attention_bias": meta.has("blk.0.attn_qkv.bias"),
    }
    names = {
        **_megatron("attention"),
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
    }
    return config, names, "gpt_neox.layers.", _by_head(meta.heads, 1, meta.head_dim)


def _bloom(meta: _Metadata) -> Found:
    config = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "seq_length": meta.require("context_length"),
        "layer_norm_epsilon": meta.eps,
    }
    return config, _megatron("self_attention"), "transformer.h.", _by_head(meta.heads, 1, meta.head_dim)


def _mpt(meta: _Metadata) -> Found:
    bias_max = meta.get("attention.max_alibi_bias", 0)
    kinds = {1: "multiquery_attention", meta.heads: "multihead_attention"}
    config = {
        "architectures": ["MPTForCausalLM"],
        "model_type": "mpt",
        "max_seq_len": meta.require("context_length"),
        "expansion_ratio": meta.require("feed_forward_length") / meta.require("embedding_length"),
        "layer_norm_epsilon": meta.eps,
        "no_bias": not meta.has("blk.0.attn_norm.bias"),
        "learned_pos_emb": meta.has("position_embd.weight"),
        "attn_config": {
            "attn_type": kinds.get(meta.kv_heads, "grouped_query_attention"),
            "kv_n_heads": meta.kv_heads,
            "alibi": bias_max > 0,
            "alibi_bias_max": bias_max or 8,
            "clip_qkv": meta.get("attention.clamp_kqv") or None,
            "qk_ln": meta.has("blk.0.attn_q_norm.weight"),
        },
    }
    names = {
        "attn_norm": "norm_1",
        "attn_qkv": "attn.Wqkv",
        "attn_q_norm": "attn.q_ln",
        "attn_k_norm": "attn.k_ln",
        "attn_output": "attn.out_proj",
        "ffn_norm": "norm_2",
        "ffn_up": "ffn.up_proj",
        "ffn_down": "ffn.down_proj",
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.norm_f",
        "output": "lm_head",
    }
    return config, names, "transformer.blocks.", as_stored


def _baichuan(meta: _Metadata) -> Found:
    # Nothing in the file tells 7B's rotation from 13B's ALiBi but their numbers of layers, 32 and 40.
    length = "model_max_length" if meta.require("block_count") >= 40 else "max_position_embeddings"
    config = {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "intermediate_size": meta.require("feed_forward_length"),
        length: meta.require("context_length"),
        "rms_norm_eps": meta.require("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.get("rope.freq_base", 10000.0),
    }
    names = {
        **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
        "attn_norm": "input_layernorm",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    }
    return config, names, "model.layers.", paired_rows({"attn_q": meta.heads, "attn_k": meta.kv_heads})


def _qwen(meta: _Metadata) -> Found:
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "intermediate_size": meta.require("feed_forward_length"),
        "seq_length": meta.require("context_length"),
        "rotary_emb_base": meta.get("rope.freq_base", 10000.0),
        "layer_norm_epsilon": meta.require("attention.layer_norm_rms_epsilon"),
        "use_dynamic_ntk": False,  # the file doesn't hold what they need
        "use_logn_attn": False,
    }
    names = {**_GPT, "ffn_gate": "mlp.w2", "ffn_up": "mlp.w1"}
    return config, names, "transformer.h.", as_stored


def _reader(find: Callable[[_Metadata], Found]) -> Callable[[Keys], Layout]:
    def read(keys: Keys) -> Layout:
        meta = _Metadata(keys.file)
        own, names, layers, rows = find(meta)
        return Layout(meta.common() | own, names, layers, rows)

    return read


OLDER = {
    "baichuan": _reader(_baichuan),
    "bloom": _reader(_bloom),
    "falcon": _reader(_falcon),
    "gpt2": _reader(_gpt2),
    "gptj": _reader(_gptj),
    "gptneox": _reader(_gptneox),
    "mpt": _reader(_mpt),
    "qwen": _reader(_qwen),
    "starcoder": _reader(_starcoder),
}
