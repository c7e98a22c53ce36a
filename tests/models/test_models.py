"""Every supported shape against transformers in float32 (eager attention), from files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from octavo_engine.models import load_model
from octavo_engine.ops import Ops
from octavo_engine.weights import open_source
from tests.models.stepper import Stepper
from tests.models.tiny import CASES, NEW_TOKENS, answers, oracle, prompts, reference_logits

Folder = Callable[[str], Path]


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_equal_transformers(name: str, ops: Ops, checkpoint: Folder) -> None:
    model = load_model(open_source(checkpoint(name)), ops, torch.float32, max_model_len=CASES[name].max_model_len)
    asked, expected = prompts(name), answers(name)
    grows = CASES[name].max_model_len is None  # else the frozen scaling holds for these lengths only
    for chunk in (1000, 50):
        stepper = Stepper(model, ops, sequences=len(asked))
        logits = stepper.prefill(asked, chunk)
        for ours, (theirs, _) in zip(logits, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
        if grows:
            assert stepper.greedy([each[-1] for each in logits], NEW_TOKENS) == [tokens for _, tokens in expected]


@pytest.mark.parametrize("name", ["llama-gqa", "llama-biases", "mistral", "opt", "opt-350m", "gpt2"])
def test_bfloat16_is_within_its_rounding(name: str, ops: Ops, checkpoint: Folder) -> None:
    model = load_model(open_source(checkpoint(name)), ops, torch.bfloat16)
    logits = Stepper(model, ops).prefill(prompts(name))
    for ours, (theirs, _) in zip(logits, answers(name), strict=True):
        error = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        assert error < 0.03  # a handful of roundings of 2^-9, through layers that amplify


@pytest.mark.parametrize("name", ["llama-gqa", "opt-350m", "gpt2"])
def test_float16_weights(name: str, ops: Ops, checkpoint: Folder) -> None:
    model = load_model(open_source(checkpoint(name)), ops, torch.float16)
    logits = Stepper(model, ops).prefill(prompts(name))
    for ours, (theirs, _) in zip(logits, answers(name), strict=True):
        assert (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt() < 0.005


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_oracle_matters(name: str) -> None:
    """Else a comparison of logits would not see a tensor that is read wrongly."""
    model, prompt = oracle(name), prompts(name)[-1]
    expected = reference_logits(model, prompt)
    for key, value in model.named_parameters():
        if key.endswith("k_proj.bias") and "opt" in name:
            continue  # Without rotation it adds the same to all scores of a query.
        kept = value.detach().clone()
        with torch.no_grad():
            value.copy_(value.flip(0) if value.ndim == 1 else value.roll(1, 0))
            changed = (reference_logits(model, prompt) - expected).abs().max()
            value.copy_(kept)
        assert changed > 0.01, f"{key} changes the logits by {changed} only"
