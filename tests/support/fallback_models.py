"""Tiny checkpoints of architectures that octavo has no file for, made with transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_utils import PreTrainedModel

__all__ = ["REFUSED", "RUN", "make", "write"]

_SIZES: dict[str, Any] = {
    "vocab_size": 103,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_MLA = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

RUN: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("ArceeConfig", _SIZES),
    "nemotron": ("NemotronConfig", _SIZES),
    "apertus": ("ApertusConfig", _SIZES),
    "vaultgemma-caps": ("VaultGemmaConfig", _SIZES | {"sliding_window": 24}),
    "deepseek-v2-narrow-values": ("DeepseekV2Config", _SIZES | _MLA),
    "hunyuan": ("HunYuanDenseV1Config", _SIZES),
    "granite-moe-scaled-logits": (
        "GraniteMoeConfig",
        _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 4.0},
    ),
}

_STATE = "nothing but keys and values"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("MambaConfig", {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 2}, _STATE),
    "sinks": (
        "GptOssConfig",
        _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
        r"the attention's s_aux='a tensor of \(4,\)'.*allowed: scaling, sliding_window, softcap",
    ),
    "chunks": (
        "Llama4TextConfig",
        _SIZES | {"num_local_experts": 2, "intermediate_size_mlp": 80},
        r"layer_types=\['chunked_attention'\]",
    ),
    "convolutions": (
        "Lfm2Config",
        _SIZES | {"layer_types": ["conv", "full_attention"]},
        r"layer_types=\['conv'\]",
    ),
    "own attention": (
        "CodeGenConfig",
        {"vocab_size": 103, "n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
        "AttentionInterface",
    ),
    "a base that follows the batch": (
        "ArceeConfig",
        _SIZES | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "rope_type='dynamic'",
    ),
}


@functools.cache
def make(name: str) -> PreTrainedModel:
    """Random weights in float32, eager attention: what the engine's answers are compared with."""
    kind, values = RUN[name] if name in RUN else REFUSED[name][:2]
    torch.manual_seed(1)
    config = getattr(transformers, kind)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim >= 2:
                value.normal_().mul_(1.0 if value.shape[0] == 103 else 1.5 / value.shape[-1] ** 0.5)
    return model


def write(name: str, folder: Path) -> Path:
    make(name).save_pretrained(folder)
    return folder
