"""Tiny checkpoints as llama.cpp's converter writes them: the gguf package's own names, and what it does to tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import MODEL_ARCH, GGUFWriter
from safetensors.torch import load_file
from torch import Tensor

from tests.models.family_oracles import oracle
from tests.support.gguf_files import as_stored, permuted

__all__ = ["CONVERSIONS", "Conversion", "convert"]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Conversion:
    """architecture: general.architecture. pairs: q and k are reordered for llama.cpp's rotation of neighbours. norms:
    what is added to the weights of norms. more: writes metadata that others don't have."""

    architecture: MODEL_ARCH
    pairs: bool = False
    norms: float = 0.0
    more: Callable[[GGUFWriter, dict[str, Any]], None] = lambda writer, config: None


def _granite(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _gemma2(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _gemma3(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config["rope_parameters"]["full_attention"]["factor"])


def _phi3(writer: GGUFWriter, config: dict[str, Any]) -> None:
    params = config["rope_parameters"]
    writer.add_rope_scaling_orig_ctx_len(params["original_max_position_embeddings"])
    factor = config["max_position_embeddings"] / params["original_max_position_embeddings"]
    original = torch.tensor(float(params["original_max_position_embeddings"]))
    writer.add_rope_scaling_attn_factors(float((1 + torch.tensor(factor).log() / original.log()).sqrt()))
    for name in ("long", "short"):
        writer.add_tensor(f"rope_factors_{name}.weight", torch.tensor(params[f"{name}_factor"]).numpy())


def _shared(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _parallel(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_parallel_residual(config["use_parallel_residual"])


CONVERSIONS: dict[str, Conversion] = {
    "cohere": Conversion(MODEL_ARCH.COMMAND_R, more=lambda w, c: w.add_logit_scale(c["logit_scale"])),
    "cohere-plus": Conversion(MODEL_ARCH.COMMAND_R, more=lambda w, c: w.add_logit_scale(c["logit_scale"])),
    "cohere2-every-fourth": Conversion(MODEL_ARCH.COHERE2, more=lambda w, c: w.add_logit_scale(c["logit_scale"])),
    "ernie": Conversion(MODEL_ARCH.ERNIE4_5),
    "exaone4-1b": Conversion(MODEL_ARCH.EXAONE4),
    "exaone4-every-fourth": Conversion(MODEL_ARCH.EXAONE4),
    "gemma": Conversion(MODEL_ARCH.GEMMA, norms=1.0),
    "gemma2-head-scalar": Conversion(MODEL_ARCH.GEMMA2, norms=1.0, more=_gemma2),
    "gemma3-six-layers": Conversion(MODEL_ARCH.GEMMA3, norms=1.0, more=_gemma3),
    "glm4": Conversion(MODEL_ARCH.GLM4),
    "granite": Conversion(MODEL_ARCH.GRANITE, pairs=True, more=_granite),
    "internlm2": Conversion(MODEL_ARCH.INTERNLM2, pairs=True),
    "llama-biases": Conversion(MODEL_ARCH.LLAMA, pairs=True),
    "mistral": Conversion(MODEL_ARCH.LLAMA, pairs=True),
    "mixtral": Conversion(MODEL_ARCH.LLAMA, pairs=True),
    "minicpm": Conversion(MODEL_ARCH.MINICPM, pairs=True, more=_granite),
    "olmo-clipped": Conversion(MODEL_ARCH.OLMO, pairs=True, more=lambda w, c: w.add_clamp_kqv(c["clip_qkv"])),
    "olmo2": Conversion(MODEL_ARCH.OLMO2),
    "olmo3-every-fourth": Conversion(MODEL_ARCH.OLMO2),
    "olmoe": Conversion(MODEL_ARCH.OLMOE),
    "phi": Conversion(MODEL_ARCH.PHI2),
    "phi3-window": Conversion(MODEL_ARCH.PHI3),
    "phi3-long": Conversion(MODEL_ARCH.PHI3, more=_phi3),
    "phi4-mini": Conversion(MODEL_ARCH.PHI3, more=_phi3),
    "qwen2": Conversion(MODEL_ARCH.QWEN2),
    "qwen2-moe": Conversion(MODEL_ARCH.QWEN2MOE, more=_shared),
    "qwen3": Conversion(MODEL_ARCH.QWEN3),
    "qwen3-moe": Conversion(MODEL_ARCH.QWEN3MOE),
    "seed-oss": Conversion(MODEL_ARCH.SEED_OSS),
    "smollm3-every-fourth": Conversion(MODEL_ARCH.SMOLLM3, pairs=True),
    "stablelm-2": Conversion(MODEL_ARCH.STABLELM, more=_parallel),
    "stablelm-12b": Conversion(MODEL_ARCH.STABLELM, more=_parallel),
    "starcoder2": Conversion(MODEL_ARCH.STARCODER2, more=lambda w, c: w.add_sliding_window(c["sliding_window"])),
}


_SLIDING = ("cohere2", "exaone4", "gemma2", "gemma3_text", "mistral", "olmo3", "phi3")


def _metadata(writer: GGUFWriter, config: dict[str, Any]) -> None:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    params = config["rope_parameters"]
    params = params.get("full_attention", params)
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(params["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * params.get("partial_rotary_factor", 1.0)))
    writer.add_feed_forward_length(config["intermediate_size"])
    if config.get("head_dim"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config.get("layer_norm_eps") or config.get("norm_epsilon", 1e-5))
    if config.get("sliding_window") and config["model_type"] in _SLIDING:
        writer.add_sliding_window(config["sliding_window"])
    experts = config.get("num_experts") or config.get("num_local_experts")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])


def _stacked(tensors: Tensors) -> Tensors:
    """Experts, and norms of single heads, of which each is a tensor, as one."""
    parts: dict[str, dict[int, Tensor]] = {}
    rest: Tensors = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(.*)\.(experts|norms)\.(\d+)\.(.*)", name)
        if match is None:
            rest[name] = value
            continue
        whole = f"{match[1]}.{match[2]}.{match[4]}" if match[2] == "experts" else f"{match[1]}.{match[4]}"
        parts.setdefault(whole, {})[int(match[3])] = value
    return rest | {name: torch.stack([group[i] for i in range(len(group))]) for name, group in parts.items()}


def convert(name: str, folder: Path, quant: str = "F32", *, single_experts: bool = False) -> Path:
    """The family's checkpoint as a GGUF; matrices in `quant`. single_experts: each a tensor, as in 2023."""
    conversion = CONVERSIONS[name]
    oracle(name).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    architecture, path = conversion.architecture, folder / "model.gguf"
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _metadata(writer, config)
    conversion.more(writer, config)
    found = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    if not single_experts:
        tensors = _stacked(tensors)
    for key, value in tensors.items():
        if "norm" in key:
            value = value + conversion.norms
        heads = config["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
        if conversion.pairs and ("q_proj" in key or "k_proj" in key):
            value = permuted(value, heads)
        # As the converter calls Mixtral's stacked experts before it looks their name up.
        number = re.search(r"experts\.(\d+)\.", key)
        stacked = re.sub(r"experts\.\d+\.", "experts.", key)
        stacked = re.sub(r"model\.(.*)block_sparse_moe\.experts", r"\1feed_forward.experts", stacked)
        published = found.get_name(stacked, (".weight", ".bias"))
        assert published is not None, f"the gguf package has no name for {key}"
        if number is not None:
            published = published.replace("_exps", f".{number[1]}")
        data, kind = as_stored(value.contiguous(), quant if value.ndim > 1 and "norm" not in key else "F32")
        writer.add_tensor(published, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
