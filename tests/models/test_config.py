"""Configs that the engine does not serve are refused by key, value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from octavo_engine.models import UnsupportedModel, load_model
from octavo_engine.ops.reference import ReferenceOps


class NoTensors:
    def names(self) -> list[str]:
        return []

    def get(self, name: str) -> torch.Tensor:
        raise KeyError(name)

    def nbytes(self, name: str) -> int:
        raise KeyError(name)


@dataclass
class Config:
    config: dict[str, Any]
    checkpoint: NoTensors = field(default_factory=NoTensors)


LLAMA = {
    "vocab_size": 103,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
OPT = LLAMA | {"ffn_dim": 80, "num_attention_heads": 4}
GPT2 = {"vocab_size": 103, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 160}
LLAMA_LM = {"architectures": ["LlamaForCausalLM"], **LLAMA}
MISTRAL_LM = {"architectures": ["MistralForCausalLM"], **LLAMA}
OPT_LM = {"architectures": ["OPTForCausalLM"], **OPT}
GPT2_LM = {"architectures": ["GPT2LMHeadModel"], **GPT2}


def lm(name: str, **values: Any) -> dict[str, Any]:
    return {"architectures": [name], **LLAMA, **values}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lm("CohereForCausalLM", use_parallel_residual=False), "use_parallel_residual=False .* True"),
        (lm("GemmaForCausalLM", hidden_activation="silu"), "hidden_activation='silu' .* 'gelu_pytorch_tanh'"),
        (lm("Gemma2ForCausalLM", layer_types=["chunked_attention"] * 2), "layer_types=.*chunked.* 2 layers"),
        (lm("Gemma2ForCausalLM", sliding_window=None, layer_types=["sliding_attention"] * 2), "sliding_window=None"),
        (lm("Gemma3ForCausalLM", use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        (lm("GraniteForCausalLM", position_embedding_type="nope"), "position_embedding_type='nope' .* 'rope'"),
        (lm("GraniteForCausalLM", residual_multiplier="much"), "residual_multiplier='much' .* a finite number"),
        (lm("InternLMForCausalLM", rotary={"type": "origin", "scaling_factor": 2.0}), "rotary=.*scaling_factor 1.0"),
        (lm("InternLMForCausalLM", rotary={"type": "spiral"}), "rotary=.*spiral.* origin or dynamic"),
        (lm("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=5), "per_tok=5 .* at most the 4"),
        (lm("MixtralForCausalLM", attention_bias=True), "attention_bias=True"),
        (lm("PhiForCausalLM", partial_rotary_factor=1.5), "partial_rotary_factor=1.5 .* at most 1"),
        (lm("Phi3ForCausalLM", rope_scaling={"type": "linear", "factor": 2.0}), "rope_type='linear' .* longrope"),
        (lm("Qwen2ForCausalLM", use_sliding_window="yes"), "use_sliding_window='yes' .* true or false"),
        (lm("Qwen2MoeForCausalLM", use_sliding_window=True), "use_sliding_window=True .* False"),
        (lm("Qwen3MoeForCausalLM", use_sliding_window=True), "use_sliding_window=True .* False"),
        (lm("SmolLM3ForCausalLM", no_rope_layers=[1]), "no_rope_layers=.* 2 layers"),
        (lm("SmolLM3ForCausalLM", no_rope_layers=[0, 0]), "no_rope_layers=.* not 0 for all"),
        (lm("StableLmForCausalLM", rotary_scaling_factor=2.0), "rotary_scaling_factor=2.0"),
        (lm("Starcoder2ForCausalLM", norm_type="rms_norm"), "norm_type='rms_norm' .* 'layer_norm'"),
        (
            {"architectures": ["Qwen9ForCausalLM"]},
            "architectures=.*Qwen9.* allowed: .*GPT2LMHeadModel, .*OPTForCausalLM",
        ),
        ({"model_type": "qwen9"}, "architectures='qwen9'"),
        ({}, "architectures=None"),
        (LLAMA_LM | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config=.*gptq"),
        (LLAMA_LM | {"hidden_size": None}, "hidden_size=None"),
        (LLAMA_LM | {"hidden_size": "48"}, "hidden_size='48' .* an integer from 1 to 2147483647"),
        (LLAMA_LM | {"max_position_embeddings": 1e30}, "max_position_embeddings=1000.* an integer from 1 to"),
        (LLAMA_LM | {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan .* a finite number"),
        (LLAMA_LM | {"rope_theta": 10**400}, "rope_theta=1000.* a finite number"),
        (LLAMA_LM | {"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] .* gelu"),
        (LLAMA_LM | {"num_hidden_layers": True}, "num_hidden_layers=True"),
        (LLAMA_LM | {"num_key_value_heads": 4}, "num_key_value_heads=4 .* a divisor of the 6"),
        (LLAMA_LM | {"rms_norm_eps": "tiny"}, "rms_norm_eps='tiny' .* a finite number"),
        (LLAMA_LM | {"tie_word_embeddings": 1}, "tie_word_embeddings=1 .* true or false"),
        (LLAMA_LM | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 .* 1.0"),
        (LLAMA_LM | {"head_dim": 7}, "head_dim=7 .* even"),
        (MISTRAL_LM | {"sliding_window": -3}, "sliding_window=-3"),
        (MISTRAL_LM | {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types="),
        (OPT_LM | {"num_attention_heads": 5}, "num_attention_heads=5 .* divisor of the hidden size 48"),
        (GPT2_LM | {"n_head": 5}, "num_attention_heads=5 .* divisor of the hidden size 48"),
        (GPT2_LM | {"add_cross_attention": True}, "add_cross_attention=True .* allowed: False"),
    ],
)
def test_refusals(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load_model(Config(config), ReferenceOps(), torch.float32)


def test_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"dtype=torch\.float64 .* bfloat16"):
        load_model(Config(LLAMA_LM), ReferenceOps(), torch.float64)
