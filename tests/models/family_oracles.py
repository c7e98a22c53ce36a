"""Tiny random checkpoints of every family, on disk under published names, and transformers' answers in float32."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from tests.models.families import NEW_TOKENS, VOCAB, Family
from tests.models.families_llama import LLAMA_LIKE
from tests.models.families_older import OLDER
from tests.models.families_recent import RECENT
from tests.models.families_rope import ROTATED
from tests.models.families_spelled import spelled
from tests.models.mpt_equations import MPT, VARIANTS

__all__ = [
    "FAMILIES",
    "choices",
    "expected_logits",
    "greedy_tokens",
    "oracle",
    "prompts",
    "published_config",
    "random_model",
    "reference_logits",
    "step_logits",
    "write",
]


def _older(name: str) -> Family:
    # Eager Falcon adds ALiBi twice (transformers 4.53 to 5.23); its sdpa and the original do it once.
    return Family(
        OLDER[name],
        attention="sdpa" if name.startswith("falcon") else "eager",
        # Without rotation a bias of k adds the same to all scores of a query.
        unseen=r".*k_proj\.bias",
    )


_ROWS = {**LLAMA_LIKE, **ROTATED, **RECENT, **{name: _older(name) for name in OLDER}, **VARIANTS}
FAMILIES: dict[str, Family] = {**_ROWS, **spelled(_ROWS)}


def _shared(name: str) -> str:
    """The row whose oracle, prompts and answers this one has."""
    return FAMILIES[name].like or name


def oracle(name: str) -> Module:
    return _oracle(_shared(name))


@functools.cache
def _oracle(name: str) -> Module:
    return random_model(FAMILIES[name].config(), FAMILIES[name].attention)


def random_model(
    config: PreTrainedConfig | dict[str, Any], attention: str = "eager", embeddings: float = 1.0
) -> Module:
    """Weights random and large enough that each of them matters, greedy choices without near ties.

    config: as a Family has it. embeddings: the size of what the first norm sees; where it is small, so that the norm's
    eps matters too.
    """
    if isinstance(config, dict):
        model: Module = MPT(config)
    else:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    model.eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim >= 2 and "norm" not in key:
                table = any(part in key for part in ("embed", "wte", "wpe"))
                value.copy_(noise * (embeddings if table else 1.6 / value.shape[-1] ** 0.5))
            else:
                value.copy_(noise * 0.4 + (1.0 if "weight" in key else 0.0))
    return model


def prompts(name: str) -> list[list[int]]:
    rng = random.Random(_shared(name))
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in FAMILIES[name].lengths]


@torch.no_grad()
def reference_logits(model: Any, tokens: list[int]) -> Tensor:
    """[tokens, V] float32, recomputed as a whole."""
    rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
    if getattr(rotary, "rope_type", None) == "dynamic":  # it keeps the base of the longest sequence that it has seen
        model.model.rotary_emb = type(rotary)(model.config)
    logits: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def expected_logits(name: str) -> list[Tensor]:
    """[tokens, V] of each prompt."""
    return _expected_logits(_shared(name))


@functools.cache
def _expected_logits(name: str) -> list[Tensor]:
    return [reference_logits(oracle(name), prompt) for prompt in prompts(name)]


def step_logits(name: str, prompt: list[int], tokens: list[int]) -> Tensor:
    """[len(tokens), V]: behind the prompt and behind each of `tokens` but the last."""
    model = oracle(name)
    if not _by_length(name):
        return reference_logits(model, prompt + tokens)[len(prompt) - 1 : -1]
    parts = [prompt + tokens[:i] for i in range(len(tokens))]
    return torch.stack([reference_logits(model, part)[-1] for part in parts])


def choices(name: str, prompt: list[int], tokens: list[int]) -> list[int]:
    """The most likely tokens by `step_logits`: where they are `tokens`, these are the oracle's greedy continuation."""
    result: list[int] = step_logits(name, prompt, tokens).argmax(-1).tolist()
    return result


@functools.cache
def greedy_tokens(name: str) -> list[list[int]]:
    """The oracle's continuation of each prompt, drawn by itself; `choices` asks it less often."""
    results = []
    for prompt in prompts(name):
        tokens: list[int] = []
        for _ in range(NEW_TOKENS):
            tokens.append(choices(name, prompt, [*tokens, 0])[-1])
        results.append(tokens)
    return results


def _by_length(name: str) -> bool:
    """Whether tokens that follow may change a token's logits: its rotation goes by the whole length."""
    scaling = getattr(FAMILIES[name].config(), "rope_parameters", None) or {}
    return scaling.get("rope_type") in ("dynamic", "longrope")


def published_config(name: str) -> dict[str, Any]:
    """What config.json says, without making the weights."""
    family = FAMILIES[name]
    config = family.config()
    if isinstance(config, dict):
        return config
    values = json.loads(config.to_json_string())
    values["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    return values if family.publish is None else family.publish(values, {})[0]


def write(name: str, folder: Path) -> Path:
    model: Any = oracle(name)
    model.save_pretrained(folder)
    publish = FAMILIES[name].publish
    if publish is not None:
        file = folder / "model.safetensors"
        config, tensors = publish(json.loads((folder / "config.json").read_text()), load_file(file))
        (folder / "config.json").write_text(json.dumps(config))
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return folder
