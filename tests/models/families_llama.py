"""Shapes of LLaMA and its relatives."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from tests.models.families import LENGTHS, VOCAB, Family, Publish, Tensors, of

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
FOUR = SIZES | {"num_hidden_layers": 4}
MOE = SIZES | {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 32}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 0.25, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# Six heads of 48 have 8 dimensions, 4 pairs; three quarters of 16 are 6 pairs.
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.7, 3.0, 5.0]}
FACTORS_MINI = {"short_factor": [1.0 + i / 8 for i in range(6)], "long_factor": [1.0 + i for i in range(6)]}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 32}
CROSSING = (1, 7, 25, 33, 130)  # that of 25 tokens grows over 32


def rope(kind: str, theta: float = 10000.0, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


# ---- how the published checkpoints differ ----------------------------------------------------------------------


def old_rope_keys(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """rope_theta at the top, scaling under rope_scaling with the key "type", as before transformers 5."""
    params = dict(config.pop("rope_parameters"))
    config["rope_theta"] = params.pop("rope_theta")
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key in params and params["rope_type"] in ("default", "longrope"):
            config[key] = params.pop(key)
    params["type"] = params.pop("rope_type")
    config["rope_scaling"] = None if params["type"] == "default" else params
    return config, tensors


def without(*keys: str) -> Publish:
    """Configs that lack keys: the family's defaults hold."""

    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        config, tensors = old_rope_keys(config, tensors) if "rope_theta" in keys else (config, tensors)
        return {key: value for key, value in config.items() if key not in keys}, tensors

    return publish


def named(architecture: str, model_type: str, **more: Any) -> Publish:
    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        config, tensors = old_rope_keys(config, tensors)
        return config | {"architectures": [architecture], "model_type": model_type} | more, tensors

    return publish


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    def new(name: str) -> str:
        for old, published in names.items():
            name = re.sub(old, published, name)
        return name

    return {new(name): value for name, value in tensors.items()}


def internlm(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Its o_proj has a bias, as LLaMA's attention_bias gives it."""
    params = config.pop("rope_parameters")
    kind = {"default": "origin"}.get(params["rope_type"], params["rope_type"])
    config["bias"] = config.pop("attention_bias")
    config |= {"architectures": ["InternLMForCausalLM"], "model_type": "internlm"}
    return config | {"rotary": {"base": params["rope_theta"], "type": kind}}, tensors


def internlm2(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """wqkv holds, for each key-value head, its query heads, its key and its value."""
    kv_heads, d = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    merged: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if "q_proj" not in name:
            continue
        parts = [value, *(tensors[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))]
        grouped = [part.reshape(kv_heads, -1, d, *part.shape[1:]) for part in parts]
        merged[name.replace("q_proj", "wqkv")] = torch.cat(grouped, dim=1).reshape(-1, *value.shape[1:])
    rest = {name: value for name, value in tensors.items() if not re.search("[qkv]_proj", name)}
    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "self_attn": "attention",
        "o_proj": "wo",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp": "feed_forward",
        "gate_proj": "w1",
        "up_proj": "w3",
        "down_proj": "w2",
    }
    config, tensors = old_rope_keys(config, renamed(rest | merged, names))
    config["bias"] = config.pop("attention_bias")
    return config | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"}, tensors


def stablelm_epoch(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    config, tensors = old_rope_keys(config, tensors)
    config["rope_pct"], config["norm_eps"] = config.pop("partial_rotary_factor"), config.pop("layer_norm_eps")
    return config | {"architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch"}, tensors


def phi3_names(kind: str) -> Publish:
    """LongRoPE under the names that published configs give it."""

    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        config, tensors = old_rope_keys(config, tensors)
        config["rope_scaling"]["type"] = kind
        return config, tensors

    return publish


def unused_window(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """A window that use_sliding_window switches off, as Qwen2's own configs have it."""
    del config["layer_types"]
    return config | {"sliding_window": 24}, tensors


def beside_images(architecture: str, model_type: str) -> Publish:
    """The text model nested beside an image model."""

    def publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        nested = {f"language_model.{name}": value for name, value in tensors.items()}
        nested["vision_tower.vision_model.head.weight"] = torch.ones(3)
        return {"architectures": [architecture], "model_type": model_type, "text_config": config}, nested

    return publish


def gemma3_with_images(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The text model nested beside an image model, as published from 4b on; local and global theta at the top."""
    params = config.pop("rope_parameters")
    config["rope_theta"] = params["full_attention"].pop("rope_theta")
    config["rope_local_base_freq"] = params["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = params["full_attention"]
    return beside_images("Gemma3ForConditionalGeneration", "gemma3")(config, tensors)


def gemma3_pattern(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """sliding_window_pattern instead of layer_types, as first published."""
    del config["layer_types"]
    return config | {"sliding_window_pattern": 3}, tensors


SCALED_FULL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
GEMMA = SIZES | {"head_dim": 16, "num_key_value_heads": 1}
GEMMA2 = GEMMA | {
    "num_hidden_layers": 3,
    "sliding_window": 24,
    "query_pre_attn_scalar": 9,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 4.0,
}
GEMMA3 = GEMMA | {"num_hidden_layers": 3, "sliding_window": 24, "query_pre_attn_scalar": 9}
GEMMA3_TYPES = ["sliding_attention", "sliding_attention", "full_attention"]
PHI = SIZES | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
PHI3 = SIZES | {"sliding_window": None}
GRANITE = SIZES | {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.7,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.6,
}
QWEN_MOE = MOE | {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "norm_topk_prob": False,
}

LONGROPE = {
    "rope_parameters": {**LONG, **FACTORS, "rope_theta": 10000.0},
    "original_max_position_embeddings": 32,
}
PHI4_MINI = PHI3 | {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
    "rope_parameters": {**LONG, **FACTORS_MINI, "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
}
STABLELM = SIZES | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}

LLAMA_LIKE: dict[str, Family] = {
    "aquila": Family(of(LlamaConfig, SIZES, rms_norm_eps=1e-5), named("AquilaModel", "aquila")),
    "aquila2-16k": Family(of(LlamaConfig, SIZES, rope("linear", factor=4.0)), named("AquilaForCausalLM", "aquila")),
    "gemma": Family(of(GemmaConfig, GEMMA)),
    "gemma-gelu": Family(of(GemmaConfig, GEMMA), named("GemmaForCausalLM", "gemma", hidden_act="gelu")),
    "gemma2": Family(of(Gemma2Config, GEMMA2)),
    "gemma2-head-scalar": Family(of(Gemma2Config, GEMMA2, query_pre_attn_scalar=16)),
    "gemma2-uncapped": Family(
        of(Gemma2Config, GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None), old_rope_keys
    ),
    "gemma2-no-types": Family(of(Gemma2Config, GEMMA2), without("layer_types", "tie_word_embeddings")),
    "gemma3": Family(of(Gemma3TextConfig, GEMMA3, layer_types=GEMMA3_TYPES)),
    "gemma3-six-layers": Family(
        of(
            Gemma3TextConfig,
            GEMMA3,
            num_hidden_layers=6,
            query_pre_attn_scalar=16,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
    ),
    "gemma3-scaled": Family(of(Gemma3TextConfig, GEMMA3, layer_types=GEMMA3_TYPES, rope_parameters=SCALED_FULL)),
    "gemma3-pattern": Family(
        of(Gemma3TextConfig, GEMMA3, layer_types=GEMMA3_TYPES, rope_parameters=SCALED_FULL), gemma3_pattern
    ),
    "gemma3-with-images": Family(
        of(Gemma3TextConfig, GEMMA3, layer_types=GEMMA3_TYPES, rope_parameters=SCALED_FULL),
        gemma3_with_images,
        ignored=r"vision_tower\..*",
    ),
    "granite": Family(of(GraniteConfig, GRANITE)),
    "granite-biases": Family(of(GraniteConfig, GRANITE, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-2)),
    "granite-plain": Family(of(GraniteConfig, SIZES)),
    "internlm": Family(of(LlamaConfig, SIZES, num_key_value_heads=6, attention_bias=True), internlm),
    "internlm-20b": Family(of(LlamaConfig, SIZES, num_key_value_heads=6, attention_bias=False), internlm),
    "internlm-dynamic": Family(
        of(LlamaConfig, SIZES, rope("dynamic", factor=1.0), num_key_value_heads=6, attention_bias=True), internlm
    ),
    "internlm-dynamic-beyond": Family(
        of(
            LlamaConfig,
            SIZES,
            rope("dynamic", factor=1.0),
            num_key_value_heads=6,
            attention_bias=True,
            max_position_embeddings=32,
        ),
        internlm,
        lengths=CROSSING,
        max_model_len=256,
    ),
    "internlm2": Family(of(LlamaConfig, SIZES, attention_bias=False), internlm2),
    "internlm2-bias": Family(of(LlamaConfig, SIZES, attention_bias=True), internlm2),
    "llama": Family(of(LlamaConfig, SIZES)),
    "llama-1": Family(
        of(LlamaConfig, SIZES, num_key_value_heads=6), without("rope_theta", "num_key_value_heads", "head_dim")
    ),
    "llama-mqa-tied": Family(of(LlamaConfig, SIZES, num_key_value_heads=1, tie_word_embeddings=True)),
    "llama-mha-tied": Family(of(LlamaConfig, SIZES, num_key_value_heads=6, tie_word_embeddings=True)),
    "llama-head-64": Family(of(LlamaConfig, SIZES, head_dim=64, num_attention_heads=4)),
    "llama-gelu": Family(of(LlamaConfig, SIZES, hidden_act="gelu")),
    "llama-head-dim": Family(of(LlamaConfig, SIZES, head_dim=20)),
    "llama-biases": Family(of(LlamaConfig, SIZES, attention_bias=True, mlp_bias=True)),
    "llama-theta": Family(of(LlamaConfig, SIZES, rope("default", 500.0)), old_rope_keys),
    "llama-linear": Family(of(LlamaConfig, SIZES, rope("linear", factor=2.5)), old_rope_keys),
    "llama-llama3": Family(of(LlamaConfig, SIZES, rope("llama3", **LLAMA3)), old_rope_keys),
    "llama-yarn": Family(
        of(LlamaConfig, SIZES, rope("yarn", factor=3.0, original_max_position_embeddings=64)), old_rope_keys
    ),
    "llama-dynamic": Family(of(LlamaConfig, SIZES, rope("dynamic", factor=3.0)), old_rope_keys),
    "llama-dynamic-beyond": Family(
        of(LlamaConfig, SIZES, rope("dynamic", factor=8.0), max_position_embeddings=32),
        lengths=CROSSING,
    ),
    "mistral": Family(of(MistralConfig, SIZES, sliding_window=24)),
    "mistral-full": Family(of(MistralConfig, SIZES, sliding_window=None), old_rope_keys),
    "mixtral": Family(of(MixtralConfig, MOE, num_local_experts=5, num_experts_per_tok=2)),
    "mixtral-window": Family(
        of(MixtralConfig, MOE, num_local_experts=4, num_experts_per_tok=3, sliding_window=24), old_rope_keys
    ),
    "olmo2": Family(of(Olmo2Config, SIZES, rms_norm_eps=1e-2)),
    "olmoe": Family(of(OlmoeConfig, MOE, num_experts=6, num_experts_per_tok=3)),
    "olmoe-clipped": Family(
        of(OlmoeConfig, MOE, num_experts=5, num_experts_per_tok=2, clip_qkv=0.8, norm_topk_prob=True)
    ),
    "phi": Family(of(PhiConfig, PHI)),
    "phi-2": Family(of(PhiConfig, PHI, partial_rotary_factor=0.4, hidden_act="gelu"), old_rope_keys),
    "phi-qk-norm": Family(of(PhiConfig, PHI, num_key_value_heads=2, qk_layernorm=True, layer_norm_eps=1e-2)),
    "phi3": Family(of(Phi3Config, PHI3)),
    "phi3-window": Family(of(Phi3Config, PHI3, sliding_window=24)),
    "phi3-long": Family(of(Phi3Config, PHI3, LONGROPE), lengths=CROSSING),
    "phi3-short": Family(of(Phi3Config, PHI3, LONGROPE), lengths=(*LENGTHS, 31)),
    "phi3-called-su": Family(of(Phi3Config, PHI3, LONGROPE), phi3_names("su")),
    "phi3-called-yarn": Family(of(Phi3Config, PHI3, LONGROPE), phi3_names("yarn")),
    "phi4-mini": Family(of(Phi3Config, PHI4_MINI, original_max_position_embeddings=32), lengths=CROSSING),
    "phi4-mini-old-keys": Family(
        of(Phi3Config, PHI4_MINI, original_max_position_embeddings=32), phi3_names("longrope")
    ),
    "qwen2": Family(of(Qwen2Config, SIZES), without("layer_types")),
    "qwen2-window": Family(
        of(Qwen2Config, SIZES, use_sliding_window=True, sliding_window=24, max_window_layers=1), without("layer_types")
    ),
    "qwen2-window-unused": Family(of(Qwen2Config, SIZES, use_sliding_window=False, max_window_layers=0), unused_window),
    "qwen2-yarn-tied": Family(
        of(
            Qwen2Config,
            SIZES,
            rope("yarn", factor=4.0, original_max_position_embeddings=64),
            tie_word_embeddings=True,
        ),
        old_rope_keys,
    ),
    "qwen2-moe": Family(
        of(Qwen2MoeConfig, QWEN_MOE, shared_expert_intermediate_size=48, intermediate_size=40, decoder_sparse_step=1),
    ),
    "qwen2-moe-some-dense": Family(
        of(
            Qwen2MoeConfig,
            QWEN_MOE,
            num_hidden_layers=4,
            shared_expert_intermediate_size=48,
            intermediate_size=40,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
            norm_topk_prob=True,
        ),
        without("layer_types"),
    ),
    "qwen3": Family(of(Qwen3Config, SIZES, head_dim=16)),
    "qwen3-biases": Family(of(Qwen3Config, SIZES, head_dim=12, attention_bias=True, rms_norm_eps=1e-2)),
    "qwen3-no-head-dim": Family(
        of(Qwen3Config, SIZES, hidden_size=32, num_attention_heads=2), without("head_dim", "layer_types")
    ),
    "qwen3-moe": Family(of(Qwen3MoeConfig, QWEN_MOE, head_dim=16, norm_topk_prob=True)),
    "qwen3-moe-some-dense": Family(
        of(Qwen3MoeConfig, QWEN_MOE, num_hidden_layers=3, intermediate_size=40, mlp_only_layers=[1], head_dim=16),
    ),
    "smollm3": Family(of(SmolLM3Config, FOUR, no_rope_layers=[1, 0, 1, 0])),
    "smollm3-every-fourth": Family(of(SmolLM3Config, FOUR), without("rope_theta", "no_rope_layers")),
    "smollm3-interval": Family(
        of(SmolLM3Config, FOUR, no_rope_layer_interval=2),
        without("no_rope_layers", "layer_types", "tie_word_embeddings"),
    ),
    "smollm3-untied-theta": Family(
        of(SmolLM3Config, FOUR, tie_word_embeddings=False), without("rope_theta", "no_rope_layers", "layer_types")
    ),
    "smollm3-window": Family(
        of(SmolLM3Config, FOUR, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=24)
    ),
    "stablelm": Family(of(StableLmConfig, STABLELM)),
    "stablelm-2": Family(of(StableLmConfig, STABLELM, use_qkv_bias=True, partial_rotary_factor=0.5), old_rope_keys),
    "stablelm-12b": Family(
        of(
            StableLmConfig,
            STABLELM,
            num_key_value_heads=2,
            qk_layernorm=True,
            use_parallel_residual=True,
            layer_norm_eps=1e-2,
        )
    ),
    "stablelm-epoch": Family(of(StableLmConfig, STABLELM, layer_norm_eps=1e-2), stablelm_epoch),
    "starcoder2": Family(of(Starcoder2Config, SIZES, sliding_window=24), without("tie_word_embeddings")),
    "starcoder2-unbiased": Family(of(Starcoder2Config, SIZES, use_bias=False, norm_epsilon=1e-2), old_rope_keys),
}
