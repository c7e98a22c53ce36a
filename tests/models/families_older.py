"""Shapes of the older families: a name -> the transformers config that makes and answers its tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoXConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
)

VOCAB = 103
_GPT = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 160}
_SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_NEOX = _SIZES | {"intermediate_size": 80, "max_position_embeddings": 256}
_FALCON = _SIZES | {"max_position_embeddings": 256}
_FALCON_NEW = {"num_attention_heads": 6, "num_kv_heads": 2, "new_decoder_architecture": True}
_FALCON_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
_MPT = {"vocab_size": VOCAB, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}

_OPT = _SIZES | {"ffn_dim": 80, "max_position_embeddings": 160}


def _of(config: type[PreTrainedConfig], *values: dict[str, Any], **more: Any) -> Callable[[], PreTrainedConfig]:
    merged: dict[str, Any] = {}
    for each in values:
        merged |= each
    return lambda: config(**(merged | more))


OLDER: dict[str, Callable[[], PreTrainedConfig]] = {
    "bloom": _of(BloomConfig, _SIZES),
    "bloom-six-heads": _of(BloomConfig, _SIZES, num_attention_heads=6),
    "bloom-residual-from-norm": _of(BloomConfig, _SIZES, apply_residual_connection_post_layernorm=True),
    "bigcode-tanh": _of(GPTBigCodeConfig, _GPT),
    "bigcode-multi-head": _of(GPTBigCodeConfig, _GPT, multi_query=False, n_inner=72, activation_function="gelu"),
    "bigcode-unscaled": _of(GPTBigCodeConfig, _GPT, scale_attn_weights=False),
    "falcon-7b": _of(FalconConfig, _FALCON, num_attention_heads=6),
    "falcon-40b": _of(FalconConfig, _FALCON, _FALCON_NEW),
    "falcon-11b": _of(
        FalconConfig,
        _FALCON,
        _FALCON_NEW,
        num_ln_in_parallel_attn=1,
        tie_word_embeddings=False,
        ffn_hidden_size=80,
        rope_parameters={"rope_type": "default", "rope_theta": 500042.0},
    ),
    "falcon-rw": _of(FalconConfig, _FALCON, _FALCON_RW),
    "falcon-rw-rounded": _of(FalconConfig, _FALCON, _FALCON_RW, hidden_size=96, num_attention_heads=12),
    "falcon-rw-parallel": _of(FalconConfig, _FALCON, _FALCON_RW, parallel_attn=True, multi_query=True, bias=False),
    "gptj": _of(GPTJConfig, _GPT, rotary_dim=8),
    "gptj-whole-head": _of(GPTJConfig, _GPT, rotary_dim=12, n_inner=72),
    "neox-parallel": _of(GPTNeoXConfig, _NEOX, num_attention_heads=2),
    "neox-sequential": _of(
        GPTNeoXConfig,
        _NEOX,
        use_parallel_residual=False,
        hidden_act="gelu_fast",
        rope_parameters={"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 1.0},
    ),
    "neox-tied-unbiased": _of(GPTNeoXConfig, _NEOX, tie_word_embeddings=True, attention_bias=False, rotary_pct=0.5),
    "mpt": _of(MptConfig, _MPT),
    "mpt-six-heads-clipped": _of(MptConfig, _MPT, n_heads=6, attn_config={"clip_qkv": 1.5}),
    "mpt-softmax-scale": _of(MptConfig, _MPT, attn_config={"softmax_scale": 0.2}),
    "gpt2": _of(GPT2Config, _GPT, n_inner=72, activation_function="relu"),
    "gpt2-unscaled": _of(GPT2Config, _GPT, scale_attn_weights=False),
    "gpt2-by-layer": _of(GPT2Config, _GPT, scale_attn_by_inverse_layer_idx=True),
    "opt": _of(OPTConfig, _OPT),
    "opt-gelu": _of(OPTConfig, _OPT, activation_function="gelu"),
    "opt-no-final-norm": _of(OPTConfig, _OPT, _remove_final_layer_norm=True),
    "opt-350m": _of(OPTConfig, _OPT, do_layer_norm_before=False, word_embed_proj_dim=32),
    "opt-galactica": _of(OPTConfig, _OPT, enable_bias=False, layer_norm_elementwise_affine=False),
}
