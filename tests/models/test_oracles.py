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
from octavo_engine.ops import LinearWeight, Ops, load_ops
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.execution.driver import Driver
from tests.models.dequantized import dequantized
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten
from tests.models.test_cuda import check_fewer_bits
from tests.support.checkpoints import InMemory, TensorsInMemory
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
    return load_model(open_source(folder), ops, torch.float32, max_model_len=160)


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


def test_qwen_of_august_2023(tmp_path: Path) -> None:
    """The first uploads have GPT-2's names of the sizes; vocab_size there is without the padding."""
    folder = _HERE / "qwen-v1-ntk-logn"
    target = rewritten(folder, tmp_path / "m", load_file(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    named = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "ffn_hidden_size",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "n_positions",
    }
    config = {named.get(key, key): value for key, value in config.items()} | {"vocab_size": 250}
    (target / "config.json").write_text(json.dumps(config))
    prompt, ops = read(folder)[-1], ReferenceOps()
    model = load_model(open_source(target), ops, torch.float32, max_model_len=160)
    last = Stepper(model, ops, sequences=1).prefill([prompt.ids])[0][-1]
    torch.testing.assert_close(last, prompt.logits, atol=1e-4, rtol=1e-5)


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


@pytest.mark.parametrize("short", ["int8", "int4"])
@each_oracle
def test_on_cuda_s_ops_in_fewer_bits(folder: Path, short: str) -> None:
    check_fewer_bits(folder, [prompt.ids for prompt in read(folder) if len(prompt.ids) in (1, 7, 33)], short)


@each_oracle
def test_a_missing_or_added_tensor_is_an_error(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")

    def load(changed: dict[str, Tensor]) -> None:
        load_model(InMemory(open_source(folder).config, TensorsInMemory(changed)), ReferenceOps(), torch.float32)

    for key in tensors:
        with pytest.raises(CheckpointMismatch, match="missing"):
            load({other: value for other, value in tensors.items() if other != key})
    with pytest.raises(CheckpointMismatch, match=r"1 tensors .* not used: surprise\.weight"):
        load(tensors | {"surprise.weight": torch.ones(3)})


@each_oracle
def test_bfloat16(folder: Path) -> None:
    ours, prompts = last_logits(folder, torch.bfloat16, "none"), read(folder)
    for row, prompt in zip(ours, prompts, strict=True):
        assert relative(row, prompt.logits) < 0.05


@pytest.mark.parametrize(("short", "bound"), [("int8", 0.1), ("int4", 0.5)])
@each_oracle
def test_int8_and_int4(folder: Path, short: str, bound: float) -> None:
    """With float activations it is the model of the rounded weights, and with those of int8 nearly so. bound: what the
    rounding of weights itself may cost."""
    made: dict[str, LinearWeight | Tensor] = {}
    coarse = last_logits(folder, torch.bfloat16, short, made)
    tensors = TensorsInMemory(dequantized(load_file(folder / "model.safetensors"), made))
    floats = InMemory(open_source(folder).config, tensors)
    expected = last_logits(folder, torch.float32, None, source=floats)
    exact = last_logits(folder, torch.float32, f"{short}:float")
    # The rows of this head get the length 1 where they are read, and those of the rounded ones have it but nearly.
    atol = 0.01 if folder.name == "baichuan2-7b" else 2e-4
    for row, nearly, theirs, prompt in zip(exact, coarse, expected, read(folder), strict=True):
        torch.testing.assert_close(row, theirs, atol=atol, rtol=1e-4)
        assert relative(nearly, theirs) < 0.1
        assert relative(theirs, prompt.logits) < bound


def last_logits(
    folder: Path,
    dtype: torch.dtype,
    short: str | None,
    made: dict[str, LinearWeight | Tensor] | None = None,
    source: InMemory | None = None,
) -> list[Tensor]:
    ops = load_ops("cpu")
    source = source or open_source(folder)
    model = load_model(source, ops, dtype, quantization=short, made=made, max_model_len=160)
    asked = [prompt.ids for prompt in read(folder)]
    return [rows[-1] for rows in Stepper(model, ops, recorded=True).prefill(asked)]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Root mean squared difference over the root mean square."""
    return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())
