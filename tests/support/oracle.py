"""SmolLM2 in transformers, float32: what the engine is held to."""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.support.checkpoints import real_model
from tests.support.gguf_files import GGUF_NAMES

__all__ = ["transformers_smollm2"]


def transformers_smollm2() -> Any:
    """transformers' model with the GGUF's weights as the gguf package dequantises them (its own gguf_file= wants the
    package accelerate)."""
    reader = gguf.GGUFReader(real_model())
    heads = {"q_proj": 9, "k_proj": 3}
    state = {}
    for tensor in reader.tensors:
        name = tensor.name
        for ours, theirs in GGUF_NAMES.items():
            name = re.sub(rf"\b{theirs}\b", ours, name)
        value = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        for projection, count in heads.items():
            if projection in name:
                value = value.unflatten(0, (count, -1, 2)).transpose(1, 2).reshape(value.shape)
        state[name] = value
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    with torch.device("meta"):  # No time for weights that are replaced at once.
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model
