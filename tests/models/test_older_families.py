"""The older families against transformers in float32, from files on disk; see families_older.py for the shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octavo_engine.models import CheckpointMismatch, load_model
from octavo_engine.ops import Ops, load_ops
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.models.families_older import OLDER
from tests.models.older_oracles import NEW_TOKENS, answers, oracle, prompts, reference_logits, write
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.mark.parametrize("name", OLDER)
def test_logits_and_greedy_tokens_equal_transformers(name: str, ops: Ops, folder: Folder) -> None:
    model = load_model(open_source(folder(name)), ops, torch.float32)
    asked, expected = prompts(name), answers(name)
    together = Stepper(model, ops, sequences=len(asked))
    logits = together.prefill(asked, 50)
    for ours, theirs in zip(logits, expected, strict=True):
        torch.testing.assert_close(ours, theirs.logits, atol=1e-4, rtol=1e-5)
    batched = together.greedy([each[-1] for each in logits], NEW_TOKENS)
    assert batched == [answer.tokens for answer in expected]
    for prompt, answer in zip(asked, expected, strict=True):
        alone = Stepper(model, ops, sequences=1)
        (row,) = alone.prefill([prompt])
        assert alone.greedy([row[-1]], NEW_TOKENS) == [answer.tokens]


@pytest.mark.parametrize("name", OLDER)
def test_every_tensor_of_the_oracle_matters(name: str) -> None:
    """Else a comparison of logits would not see a tensor that is read wrongly."""
    model, prompt = oracle(name), prompts(name)[-1]
    expected = reference_logits(model, prompt)
    for key, value in model.named_parameters():
        if key.endswith("k_proj.bias"):
            continue  # Without rotation it adds the same to all scores of a query.
        kept = value.detach().clone()
        with torch.no_grad():
            value.copy_(value.flip(0) if value.ndim == 1 else value.roll(1, 0))
            changed = (reference_logits(model, prompt) - expected).abs().max()
            value.copy_(kept)
        assert changed > 0.01, f"{key} changes the logits by {changed} only"


@pytest.mark.parametrize("name", OLDER)
def test_a_missing_or_added_tensor_is_an_error(name: str, folder: Folder, tmp_path: Path) -> None:
    ops, source = ReferenceOps(), folder(name)
    tensors = load_file(source / "model.safetensors")
    for key in tensors:
        rest = {other: value for other, value in tensors.items() if other != key}
        with pytest.raises(CheckpointMismatch, match="missing"):
            load_model(open_source(rewritten(source, tmp_path / "m", rest)), ops, torch.float32)
    for key in ("surprise.weight", next(iter(tensors)).replace("weight", "bias") + "2"):
        more = tensors | {key: torch.ones(3)}
        with pytest.raises(CheckpointMismatch, match=f"1 tensors .* not used: {key}"):
            load_model(open_source(rewritten(source, tmp_path / "m", more)), ops, torch.float32)


@pytest.mark.parametrize(("scheme", "bound"), [("none", 0.04), ("int8", 0.08), ("int4", 0.5)])
@pytest.mark.parametrize("name", OLDER)
def test_bfloat16_int8_and_int4(name: str, scheme: str, bound: float, folder: Folder) -> None:
    ops = load_ops("cpu")
    model = load_model(open_source(folder(name)), ops, torch.bfloat16, quantization=scheme)
    logits = torch.cat(Stepper(model, ops, recorded=True).prefill(prompts(name)))
    expected = torch.cat([answer.logits for answer in answers(name)])
    assert (logits - expected).square().mean().sqrt() < bound * expected.square().mean().sqrt()
