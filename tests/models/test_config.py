"""Configs that the engine does not serve are refused by key, value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from octavo_engine.models import UnsupportedModel, load_model
from octavo_engine.ops.reference import ReferenceOps
from tests.models.tiny import GPT2, LLAMA, OPT


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


LLAMA_LM = {"architectures": ["LlamaForCausalLM"], **LLAMA}
MISTRAL_LM = {"architectures": ["MistralForCausalLM"], **LLAMA}
OPT_LM = {"architectures": ["OPTForCausalLM"], **OPT}
GPT2_LM = {"architectures": ["GPT2LMHeadModel"], **GPT2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["Qwen9ForCausalLM"]},
            "architectures=.*Qwen9.* allowed: .*GPT2LMHeadModel, .*OPTForCausalLM",
        ),
        ({"model_type": "qwen9"}, "architectures='qwen9'"),
        ({}, "architectures=None"),
        (LLAMA_LM | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config=.*gptq"),
        (LLAMA_LM | {"hidden_size": None}, "hidden_size=None"),
        (LLAMA_LM | {"hidden_size": "48"}, "hidden_size='48' .* an integer of at least 1"),
        (LLAMA_LM | {"num_hidden_layers": True}, "num_hidden_layers=True"),
        (LLAMA_LM | {"num_key_value_heads": 4}, "num_key_value_heads=4 .* a divisor of the 6"),
        (LLAMA_LM | {"rms_norm_eps": "tiny"}, "rms_norm_eps='tiny' .* a number"),
        (LLAMA_LM | {"tie_word_embeddings": 1}, "tie_word_embeddings=1 .* true or false"),
        (LLAMA_LM | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 .* 1.0"),
        (LLAMA_LM | {"head_dim": 7}, "head_dim=7 .* even"),
        (MISTRAL_LM | {"sliding_window": -3}, "sliding_window=-3"),
        (MISTRAL_LM | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        (OPT_LM | {"num_attention_heads": 5}, "num_attention_heads=5 .* divisor of hidden_size 48"),
        (GPT2_LM | {"n_head": 5}, "n_head=5"),
        (GPT2_LM | {"add_cross_attention": True}, "add_cross_attention=True .* allowed: False"),
    ],
)
def test_refusals(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load_model(Config(config), ReferenceOps(), torch.float32)


def test_dtype_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"dtype=torch\.float64 .* bfloat16"):
        load_model(Config(LLAMA_LM), ReferenceOps(), torch.float64)
