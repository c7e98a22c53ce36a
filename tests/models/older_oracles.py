"""Tiny random checkpoints of the older families, on disk under published names, and transformers' answers."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from tests.models.families_older import OLDER, VOCAB

LENGTHS = (1, 7, 33, 130)
NEW_TOKENS = 20


@dataclass(frozen=True)
class Answer:
    """logits [tokens, V] of a prompt, and its greedy continuation."""

    logits: Tensor
    tokens: list[int]


@functools.cache
def oracle(name: str) -> PreTrainedModel:
    """In float32; weights random and large enough that each of them matters, greedy choices without near ties."""
    config = OLDER[name]()
    # Eager Falcon adds ALiBi twice (transformers 4.53 to 5.23); its sdpa and the original do it once.
    how = "sdpa" if config.model_type == "falcon" else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=how, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            table = any(part in key for part in ("embed", "wte", "wpe"))
            if value.ndim == 2:
                value.copy_(noise * (1.0 if table else 1.6 / 48**0.5))
            else:
                value.copy_(noise * 0.4 + (1.0 if "weight" in key else 0.0))
    return model


def prompts(name: str) -> list[list[int]]:
    rng = random.Random(name)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS]


@torch.no_grad()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """[tokens, V] float32, recomputed as a whole."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


@functools.cache
def answers(name: str) -> list[Answer]:
    result = []
    for prompt in prompts(name):
        logits, tokens = reference_logits(oracle(name), prompt), list(prompt)
        for _ in range(NEW_TOKENS):
            tokens.append(int(reference_logits(oracle(name), tokens)[-1].argmax()))
        result.append(Answer(logits, tokens[len(prompt) :]))
    return result


def write(name: str, folder: Path) -> Path:
    oracle(name).save_pretrained(folder)
    return folder
