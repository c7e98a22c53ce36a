"""Families that transformers does not have, against the recorded answers of their own code (tests/models/oracles)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo.options import SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.models import CausalLM, CheckpointMismatch, load_model
from octavo_engine.ops import Ops, load_ops
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.execution.driver import Driver
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten
from tests.support.cuda import emulated_ops

_HERE = Path(__file__).parent / "oracles"
FOLDERS = sorted(path.parent for path in _HERE.glob("*/oracle.json"))
if more := os.environ.get("OCTAVO_ORACLES"):
    FOLDERS += sorted(
        path.parent for path in Path(more).glob("*/oracle.json") if path.parent.name not in os.listdir(_HERE)
    )
each_oracle = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    greedy: list[int]
    logits: Tensor  # [V], of the last token


def read(folder: Path) -> list[Prompt]:
    entries = json.loads((folder / "oracle.json").read_text())["prompts"]
    if (folder / "logits.safetensors").is_file():
        rows = load_file(folder / "logits.safetensors")["last_logits"]
    else:
        rows = torch.from_numpy(np.load(folder / "logits.npz")["last_logits"])
    return [Prompt(entry["ids"], entry["greedy"], row) for entry, row in zip(entries, rows, strict=True)]


def model_of(folder: Path, ops: Ops) -> CausalLM:
    return load_model(open_source(folder), ops, torch.float32)


@each_oracle
def test_logits_and_greedy_tokens(folder: Path, ops: Ops) -> None:
    prompts = read(folder)
    model = model_of(folder, ops)
    for batch in (*([prompt] for prompt in prompts), prompts):
        stepper = Stepper(model, ops, sequences=len(batch))
        last = [rows[-1] for rows in stepper.prefill([prompt.ids for prompt in batch], 50)]
        for ours, prompt in zip(last, batch, strict=True):
            torch.testing.assert_close(ours, prompt.logits, atol=1e-4, rtol=1e-5)
        tokens = len(batch[0].greedy)
        assert stepper.greedy(last, tokens) == [prompt.greedy for prompt in batch]


@each_oracle
def test_on_cuda_s_ops(folder: Path) -> None:
    """Emulated: every op of these families is there."""
    ops = emulated_ops(check=False)
    prompt = next(prompt for prompt in read(folder) if len(prompt.ids) == 33)
    model = model_of(folder, ops)
    driver = Driver(
        model, ops, kv_dtype=torch.float32, num_pages=40, max_num_seqs=4, max_model_len=64, make=DeviceRunner
    )
    sequence = driver.start(prompt.ids, SamplingParams(temperature=0))
    driver.step([(sequence, 20)])
    driver.finish([sequence], 4)
    assert sequence.output == prompt.greedy[:4]


@each_oracle
def test_a_missing_or_added_tensor_is_an_error(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for key in tensors:
        rest = {other: value for other, value in tensors.items() if other != key}
        with pytest.raises(CheckpointMismatch, match="missing"):
            model_of(rewritten(folder, tmp_path / "m", rest), ReferenceOps())
    more = rewritten(folder, tmp_path / "m", tensors | {"surprise.weight": torch.ones(3)})
    with pytest.raises(CheckpointMismatch, match=r"1 tensors .* not used: surprise\.weight"):
        model_of(more, ReferenceOps())


@pytest.mark.parametrize(("scheme", "bound"), [("none", 0.05), ("int8", 0.1), ("int4", 0.5)])
@each_oracle
def test_bfloat16_int8_and_int4(folder: Path, scheme: str, bound: float) -> None:
    ops = load_ops("cpu")
    model = load_model(open_source(folder), ops, torch.bfloat16, quantization=scheme)
    for prompt in read(folder):
        last = Stepper(model, ops, sequences=1, recorded=True).prefill([prompt.ids])[0][-1]
        assert (last - prompt.logits).square().mean().sqrt() < bound * prompt.logits.square().mean().sqrt()
