"""GGUF architectures of LLaMA and its relatives (llama.cpp's own names and keys) as their published checkpoints.

llama.cpp rotates neighbouring dimensions in some of them, and its converter reorders q and k for that; it adds 1 to
Gemma's norms, stacks experts, and leaves out of the metadata what its own code knows by the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo_engine.weights.gguf_checkpoint import Keys, Layout, as_stored, common_config, paired_rows
from octavo_engine.weights.source import SourceError

__all__ = ["LLAMA_LIKE"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI = {
    "output_norm": "model.final_layernorm",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_STABLELM = {
    "attn_q_norm": "self_attn.q_layernorm.norms.{}",
    "attn_k_norm": "self_attn.k_layernorm.norms.{}",
}
_STARCODER2 = {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GLM4 = {
    "ffn_up": "mlp.gate_up_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_FREQS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def _rope(keys: Keys, theta: float = 10000.0) -> dict[str, Any]:
    params = {"rope_theta": keys.get("rope.freq_base", theta)}
    divisors = keys.floats(_FREQS)
    if divisors is not None:
        return params | {"rope_type": "freq_factors", "freq_factors": divisors}
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))
    if kind == "none" and not factor:
        return params
    scaling = {"rope_type": "linear" if kind == "none" else kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.get("rope.scaling.original_context_length")
    return params | scaling


def _config(keys: Keys, architecture: str, *, partial: bool = False, eps: str = "rms") -> dict[str, Any]:
    """partial: rope.dimension_count need not be the head's. eps: which norm's the metadata has."""
    config = common_config(keys) | {"architectures": [architecture], "rope_parameters": _rope(keys)}
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    rotated = keys.get("rope.dimension_count")
    head_dim = keys.get("attention.key_length") or (None if partial else rotated) or hidden // heads
    for name, value in (("attention.value_length", None), ("rope.dimension_count", rotated)):
        value = keys.get(name, head_dim)
        if value != head_dim and not (partial and name.startswith("rope")):
            raise SourceError(
                f"{keys.file.path}: {keys.architecture}.{name} {value} differs from the head size {head_dim}"
            )
    if partial and rotated is not None:
        config["rope_parameters"]["partial_rotary_factor"] = rotated / head_dim
    rms = "attention.layer_norm_rms_epsilon"
    norm = (
        {"rms_norm_eps": keys.required(rms)} if eps == "rms" else {eps: keys.required("attention.layer_norm_epsilon")}
    )
    width = keys.get("feed_forward_length")
    return (
        config
        | norm
        | {
            "head_dim": head_dim,
            "intermediate_size": keys.get("expert_feed_forward_length") if width is None else width,
            "attention_bias": keys.has("blk.0.attn_q.bias"),
        }
    )


def _layout(config: dict[str, Any], *names: dict[str, str], pairs: bool = False, **more: Any) -> Layout:
    """pairs: q and k lie as llama.cpp rotates them."""
    merged = dict(_NAMES)
    for each in names:
        merged |= each
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    rows = paired_rows(heads) if pairs else as_stored
    return Layout(config, merged, rows=rows, ignored=frozenset((_FREQS, _LONG, _SHORT)), **more)


def _window(keys: Keys) -> dict[str, Any]:
    window = keys.get("attention.sliding_window")
    return {"sliding_window": window} if window else {}


def _llama(keys: Keys) -> Layout:
    """LLaMA, Mistral and Mixtral."""
    window = _window(keys)
    if keys.get("expert_count"):
        config = _config(keys, "MixtralForCausalLM") | _experts(keys, renormalise=True) | window
        return _layout(config, _MIXTRAL, pairs=True)
    config = _config(keys, "MistralForCausalLM" if window else "LlamaForCausalLM") | window
    return _layout(config | {"mlp_bias": keys.has("blk.0.ffn_gate.bias")}, pairs=True)


def _experts(keys: Keys, *, renormalise: bool) -> dict[str, Any]:
    return {
        "num_experts": keys.required("expert_count"),
        "num_experts_per_tok": keys.required("expert_used_count"),
        "norm_topk_prob": keys.get("expert_weights_norm", renormalise),
        "moe_intermediate_size": keys.get("expert_feed_forward_length"),
    }


def _qwen2(keys: Keys) -> Layout:
    return _layout(_config(keys, "Qwen2ForCausalLM"))


def _qwen2_moe(keys: Keys) -> Layout:
    config = _config(keys, "Qwen2MoeForCausalLM") | _experts(keys, renormalise=False)
    config["shared_expert_intermediate_size"] = keys.get("expert_shared_feed_forward_length")
    return _layout(config, _EXPERTS, _SHARED)


def _qwen3(keys: Keys) -> Layout:
    return _layout(_config(keys, "Qwen3ForCausalLM"), _HEAD_NORMS)


def _qwen3_moe(keys: Keys) -> Layout:
    config = _config(keys, "Qwen3MoeForCausalLM") | _experts(keys, renormalise=True)
    return _layout(config, _HEAD_NORMS, _EXPERTS)


def _olmoe(keys: Keys) -> Layout:
    config = _config(keys, "OlmoeForCausalLM") | _experts(keys, renormalise=False)
    config["clip_qkv"] = keys.get("attention.clamp_kqv")
    return _layout(config, _HEAD_NORMS, _EXPERTS)


def _olmo(keys: Keys) -> Layout:
    config = _config(keys, "OlmoForCausalLM", eps="layer_norm_eps")
    return _layout(config | {"clip_qkv": keys.get("attention.clamp_kqv")}, pairs=True)


def _olmo2(keys: Keys) -> Layout:
    """OLMo 2 and 3, of which only the latter slides."""
    window = _window(keys)
    config = _config(keys, "Olmo3ForCausalLM" if window else "Olmo2ForCausalLM") | window
    if window:
        local = {"rope_theta": config["rope_parameters"]["rope_theta"]}
        config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    return _layout(config, _HEAD_NORMS, _POST_NORMS)


def _exaone4(keys: Keys) -> Layout:
    config = _config(keys, "Exaone4ForCausalLM") | {"sliding_window": keys.get("attention.sliding_window")}
    return _layout(config, _HEAD_NORMS, _POST_NORMS)


def _ernie4_5(keys: Keys) -> Layout:
    config = _config(keys, "Ernie4_5ForCausalLM")
    return _layout(config | {"use_bias": config["attention_bias"]})


def _glm4(keys: Keys) -> Layout:
    return _layout(_config(keys, "Glm4ForCausalLM", partial=True), _GLM4)


def _seed_oss(keys: Keys) -> Layout:
    config = _config(keys, "SeedOssForCausalLM")
    return _layout(config, {"post_attention_norm": "post_attention_layernorm"})


def _gemma(keys: Keys) -> Layout:
    return _layout(_config(keys, "GemmaForCausalLM"), offset=1.0)


def _query_scalar(keys: Keys, config: dict[str, Any], largest: int) -> float:
    """llama.cpp knows by the number of layers that the largest model scales by hidden / heads, others by a head."""
    if config["num_hidden_layers"] == largest:
        return float(config["hidden_size"] // config["num_attention_heads"])
    return float(config["head_dim"])


def _gemma2(keys: Keys) -> Layout:
    config = _config(keys, "Gemma2ForCausalLM") | _window(keys)
    config["query_pre_attn_scalar"] = _query_scalar(keys, config, 46)
    config["attn_logit_softcapping"] = keys.get("attn_logit_softcapping", 50.0)
    config["final_logit_softcapping"] = keys.get("final_logit_softcapping", 30.0)
    return _layout(config, _SANDWICH, offset=1.0)


def _gemma3(keys: Keys) -> Layout:
    config = _config(keys, "Gemma3ForCausalLM") | _window(keys)
    config["rope_parameters"] = {
        "full_attention": _rope(keys, theta=1e6),
        "sliding_attention": {"rope_theta": keys.get("rope.freq_base_swa", 10000.0)},
    }
    config["query_pre_attn_scalar"] = _query_scalar(keys, config, 62)
    config["final_logit_softcapping"] = keys.get("final_logit_softcapping") or None
    pattern = keys.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        config["sliding_window_pattern"] = pattern
    return _layout(config, _SANDWICH, _HEAD_NORMS, offset=1.0)


def _phi2(keys: Keys) -> Layout:
    return _layout(_config(keys, "PhiForCausalLM", partial=True, eps="layer_norm_eps"), _PHI)


def _phi3(keys: Keys) -> Layout:
    config = _config(keys, "Phi3ForCausalLM", partial=True) | _window(keys)
    long, short = keys.floats(_LONG), keys.floats(_SHORT)
    if long is not None and short is not None:
        config["original_max_position_embeddings"] = keys.required("rope.scaling.original_context_length")
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        magnitude = keys.get("rope.scaling.attn_factor")
        scaling |= {} if magnitude is None else {"attention_factor": magnitude}
        config["rope_parameters"] = (
            {"rope_theta": keys.get("rope.freq_base", 10000.0)}
            | scaling
            | {key: value for key, value in config["rope_parameters"].items() if key == "partial_rotary_factor"}
        )
    return _layout(config, _PHI3)


def _stablelm(keys: Keys) -> Layout:
    config = _config(keys, "StableLmForCausalLM", partial=True, eps="layer_norm_eps")
    config["use_qkv_bias"] = config.pop("attention_bias")
    config["qk_layernorm"] = keys.has("blk.0.attn_q_norm.weight")
    config["use_parallel_residual"] = keys.get("use_parallel_residual", False)
    return _layout(config, _STABLELM)


def _starcoder2(keys: Keys) -> Layout:
    config = _config(keys, "Starcoder2ForCausalLM", eps="norm_epsilon") | _window(keys)
    config["use_bias"] = config.pop("attention_bias")
    return _layout(config, _STARCODER2)


def _granite(keys: Keys) -> Layout:
    config = _config(keys, "GraniteForCausalLM") | {"mlp_bias": keys.has("blk.0.ffn_gate.bias")}
    for ours, theirs in (
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ):
        config[ours] = keys.get(theirs, 1.0)
    return _layout(config, pairs=True)


def _minicpm(keys: Keys) -> Layout:
    """By Granite's keys, with scores scaled as LLaMA's."""
    layout = _granite(keys)
    layout.config["attention_multiplier"] = layout.config["head_dim"] ** -0.5
    return layout


def _smollm3(keys: Keys) -> Layout:
    return _layout(_config(keys, "SmolLM3ForCausalLM"), pairs=True)


def _command_r(keys: Keys) -> Layout:
    config = _config(keys, "CohereForCausalLM", eps="layer_norm_eps")
    config["logit_scale"] = keys.get("logit_scale", 1.0)
    config["use_qk_norm"] = keys.has("blk.0.attn_q_norm.weight")
    return _layout(config, _HEAD_NORMS)


def _cohere2(keys: Keys) -> Layout:
    config = _config(keys, "Cohere2ForCausalLM", eps="layer_norm_eps") | _window(keys)
    return _layout(config | {"logit_scale": keys.get("logit_scale", 1.0)})


def _internlm2(keys: Keys) -> Layout:
    """The converter takes wqkv apart, so what is left is LLaMA."""
    return _layout(_config(keys, "LlamaForCausalLM"), pairs=True)


LLAMA_LIKE: dict[str, Callable[[Keys], Layout]] = {
    "cohere2": _cohere2,
    "command-r": _command_r,
    "ernie4_5": _ernie4_5,
    "exaone4": _exaone4,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "glm4": _glm4,
    "granite": _granite,
    "internlm2": _internlm2,
    "llama": _llama,
    "minicpm": _minicpm,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "phi2": _phi2,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
