"""Small GGUF files of the llama architecture, written by the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from octavo_engine.ops import QuantizedWeight

__all__ = ["GGUF_NAMES", "as_stored", "dequantized", "gguf_name", "permuted", "random_blocks", "write_gguf"]

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}

# Where the float16 scales of a block lie that the gguf package can't quantise to.
_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,)}


def gguf_name(name: str) -> str:
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def permuted(value: Tensor, heads: int) -> Tensor:
    """Rows of each head from (first half; second half) to alternating, as llama.cpp's converter writes q and k."""
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)


def random_blocks(kind: GGMLQuantizationType, count: int, seed: int = 3) -> npt.NDArray[np.uint8]:
    """[count, bytes a block] of any bits, but for the float16 scales and minima, which are small numbers."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in _HALVES.get(kind.name, (0, 2) if kind.name.endswith("_1") else (0,)):
        blocks[:, at : at + 2] = rng.normal(0, 0.003, (count, 1)).astype(np.float16).view(np.uint8)
    return blocks


def dequantized(weight: QuantizedWeight) -> Tensor:
    """[N, K] float32, by the definition of QuantizedWeight."""
    group = torch.arange(weight.codes.shape[1]) // weight.group_size
    scales, codes = weight.scales.float()[:, group], weight.codes.float()
    if weight.offsets is None:
        return scales * (codes - 2 ** (weight.bits - 1))
    return scales * codes + weight.offsets.float()[:, group]


def as_stored(value: Tensor, quant: str) -> tuple[npt.NDArray[Any], GGMLQuantizationType]:
    """The tensor as a file of this type holds it; random blocks of its shape where the gguf package can't quantise."""
    kind = GGMLQuantizationType[quant]
    if quant in _HALVES:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        return random_blocks(kind, value.numel() // block).reshape(value.shape[0], -1), kind
    return gguf.quantize(value.numpy(), kind), kind


def write_gguf(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    quant: str,
    *,
    quants: dict[str, str] | None = None,
    **more: Any,
) -> Path:
    """A llama GGUF; vectors in F32, matrices in `quant`, or as `quants` says for those whose name holds its key.

    more: metadata to add, by key with `__` for dots.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_add_bos_token(True)
    for key, value in more.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key.replace("__", "."), value)
    for name, value in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            value = permuted(value, config[f"num_{'attention' if 'q_proj' in name else 'key_value'}_heads"])
        named = next((kind for part, kind in (quants or {}).items() if part in name), quant)
        data, kind = as_stored(value, named if value.ndim == 2 else "F32")
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
