"""The hidden states behind the final norm against transformers' last_hidden_state, where families differ in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo_engine.models import load_model
from octavo_engine.ops import load_ops
from octavo_engine.weights import open_source
from tests.models.family_oracles import oracle, prompts, write
from tests.models.stepper import Stepper
from tests.support import fallback_models

# Norms with and without a bias, with the logits' factor in them, behind a projection, absent; mixtures; transformers'.
NAMES = ["llama", "cohere", "granite", "gemma2", "olmo2", "qwen2-moe", "bloom", "mpt", "gpt2-by-layer", "opt-350m"]


@pytest.mark.parametrize("name", NAMES)
def test_equal_transformers(name: str, tmp_path: Path) -> None:
    ops = load_ops("cpu")
    model = load_model(open_source(write(name, tmp_path)), ops, torch.float32)
    stepper = Stepper(model, ops)
    stepper.logits = model.hidden_states
    asked = prompts(name)[-1]
    (ours,) = stepper.prefill([asked], 50)
    with torch.no_grad():
        body = oracle(name).get_decoder()
        theirs = body(torch.tensor([asked]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_a_model_that_transformers_runs(tmp_path: Path) -> None:
    name = next(iter(fallback_models.RUN))
    ops = load_ops("cpu")
    model = load_model(open_source(fallback_models.write(name, tmp_path)), ops, torch.float32)
    stepper = Stepper(model, ops)
    stepper.logits = model.hidden_states
    asked = [5, 9, 33, 70, 2, 8]
    (ours,) = stepper.prefill([asked])
    with torch.no_grad():
        body = fallback_models.make(name).get_decoder()
        theirs = body(torch.tensor([asked]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
