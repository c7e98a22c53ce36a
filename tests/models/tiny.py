"""Tiny random checkpoints of every supported shape, made and answered by transformers."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, OPTConfig
from transformers.modeling_utils import PreTrainedModel

VOCAB = 103
LENGTHS = (1, 7, 33, 130)
NEW_TOKENS = 8

LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 160}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 1.7, 3.0, 5.0],
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Case:
    """A config, and what of it can be compared: `lengths` of prompts, served with `max_model_len`."""

    config: type
    values: dict[str, Any] = field(hash=False)
    lengths: tuple[int, ...] = LENGTHS
    max_model_len: int | None = None


def _llama(**values: Any) -> Case:
    return Case(LlamaConfig, LLAMA | values)


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


CASES = {
    "llama-gqa": _llama(),
    "llama-mqa": _llama(num_key_value_heads=1),
    "llama-mha-tied": _llama(num_key_value_heads=6, tie_word_embeddings=True),
    "llama-head-dim": _llama(head_dim=20),
    "llama-head-64": _llama(head_dim=64, num_attention_heads=4),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True),
    "llama-gelu": _llama(hidden_act="gelu"),
    "llama-theta": _llama(**_rope("default", rope_theta=500000.0)),
    "llama-linear": _llama(**_rope("linear", factor=2.5)),
    "llama-llama3": _llama(**_rope("llama3", **LLAMA3)),
    "llama-yarn": _llama(**_rope("yarn", **YARN)),
    "llama-dynamic": _llama(**_rope("dynamic", factor=3.0)),
    # Past the trained length transformers' base follows the prompt; ours is frozen at max_model_len.
    "llama-dynamic-beyond": Case(
        LlamaConfig, LLAMA | {"max_position_embeddings": 64} | _rope("dynamic", factor=3.0), (130,), 130
    ),
    "llama-longrope-long": Case(LlamaConfig, LLAMA | _rope("longrope", **LONG), (33, 130), 256),
    "llama-longrope-short": Case(LlamaConfig, LLAMA | _rope("longrope", **LONG), (1, 7), 32),
    "mistral": Case(MistralConfig, LLAMA | {"sliding_window": 24}),
    "mistral-full": Case(MistralConfig, LLAMA | {"sliding_window": None}),
    "opt": Case(OPTConfig, OPT),
    "opt-gelu": Case(OPTConfig, OPT | {"activation_function": "gelu"}),
    "opt-350m": Case(OPTConfig, OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt-no-final-norm": Case(OPTConfig, OPT | {"_remove_final_layer_norm": True}),
    "opt-galactica": Case(OPTConfig, OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt2": Case(GPT2Config, GPT2),
    "gpt2-variants": Case(
        GPT2Config,
        GPT2 | {"n_inner": 72, "scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    ),
    "gpt2-unscaled": Case(GPT2Config, GPT2 | {"scale_attn_weights": False}),
}


@functools.cache
def oracle(name: str) -> PreTrainedModel:
    """The transformers model of a case in float32, its weights random and large enough to matter."""
    case = CASES[name]
    torch.manual_seed(len(name))
    config = case.config(**case.values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 2:
                value.copy_(noise * (1.0 if "emb" in key or "wte" in key or "wpe" in key else 1.6 / 48**0.5))
            else:
                value.copy_(noise * 0.4 + (1.0 if "weight" in key else 0.0))
    return model


def prompts(name: str) -> list[list[int]]:
    rng = random.Random(name)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in CASES[name].lengths]


@torch.no_grad()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """[tokens, V] float32, recomputed as a whole."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


@functools.cache
def answers(name: str) -> list[tuple[Tensor, list[int]]]:
    """A prompt: logits of all its tokens, and its greedy continuation."""
    result = []
    for prompt in prompts(name):
        logits = reference_logits(oracle(name), prompt)
        tokens = list(prompt)
        for _ in range(NEW_TOKENS):
            tokens.append(int(reference_logits(oracle(name), tokens)[-1].argmax()))
        result.append((logits, tokens[len(prompt) :]))
    return result
