"""A recorded forward gives the bits that the same forward gives op by op, for every architecture and batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo_engine.models import load_model
from octavo_engine.ops import Ops, OpsUnavailable, load_ops
from octavo_engine.ops.program import Program
from octavo_engine.weights import open_source
from tests.models.families import VOCAB
from tests.models.stepper import Stepper

Folder = Callable[[str], Path]
SHAPES = ["llama", "llama-biases", "mistral", "opt", "opt-350m", "opt-no-final-norm", "gpt2"]
# Tokens a sequence and step: decoding alone, chunks, both mixed, few rows after many.
STEPS = [
    {0: 7},
    {0: 1},
    {1: 64, 0: 1},
    {0: 1, 1: 1, 2: 1},
    {3: 33, 2: 7, 0: 1, 1: 64},
    {2: 1},
    {0: 1, 1: 1, 2: 1, 3: 1},
]


def run(stepper: Stepper) -> list[Tensor]:
    rng = random.Random(3)
    results = []
    for lengths in STEPS:
        chunks = {s: [rng.randrange(VOCAB) for _ in range(length)] for s, length in lengths.items()}
        results += [logits.clone() for logits in stepper.step(chunks).values()]
    return results


@pytest.fixture(params=["portable", "avx2", "avx512"])
def native(request: pytest.FixtureRequest) -> Ops:
    try:
        return load_ops("cpu", isa=request.param)
    except OpsUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_recorded_equals_eager_to_the_bit(name: str, dtype: torch.dtype, native: Ops, checkpoint: Folder) -> None:
    model = load_model(open_source(checkpoint(name)), native, dtype)
    eager, recorded = run(Stepper(model, native)), Stepper(model, native, recorded=True)
    assert isinstance(recorded.forward, Program)
    for ours, theirs in zip(run(recorded), eager, strict=True):
        assert not ours.isnan().any()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("int8_cache", [False, True], ids=["float-cache", "int8-cache"])
@pytest.mark.parametrize("scheme", ["int4", "int4:float", "int8", "llm_int8"])
@pytest.mark.parametrize("name", ["llama-mha-tied", "opt-350m", "gpt2"])
def test_quantised_weights_and_caches_too(name: str, scheme: str, int8_cache: bool, checkpoint: Folder) -> None:
    ops = load_ops("cpu")
    model = load_model(open_source(checkpoint(name)), ops, torch.bfloat16, quantization=scheme)
    recorded = run(Stepper(model, ops, recorded=True, int8_cache=int8_cache))
    for ours, theirs in zip(recorded, run(Stepper(model, ops, int8_cache=int8_cache)), strict=True):
        assert not ours.isnan().any()
        assert torch.equal(ours, theirs)


def test_an_error_in_a_recorded_op_arrives_and_the_next_run_works(checkpoint: Folder) -> None:
    ops = load_ops("cpu")
    model = load_model(open_source(checkpoint("llama")), ops, torch.float32)
    recorded, eager = Stepper(model, ops, recorded=True), Stepper(model, ops)
    with pytest.raises(ValueError, match=rf"ids\[1\] is 999; the table has {VOCAB} rows"):
        recorded.step({0: [1, 999, 2]})
    recorded.lengths[0] = 0
    assert torch.equal(recorded.step({0: [1, 2, 3]})[0], eager.step({0: [1, 2, 3]})[0])
