"""Architectures without a file here: transformers' code over octavo's paged cache answers as transformers does."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.options import SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.models import CheckpointMismatch, UnsupportedModel, load_model
from octavo_engine.models.fallback import TransformersModel
from octavo_engine.ops import Ops, load_ops
from octavo_engine.ops.cuda import CudaOps
from octavo_engine.ops.eager import EagerOps
from octavo_engine.weights import open_source
from tests.execution.driver import Driver
from tests.models.stepper import Stepper
from tests.support.cuda import emulated_ops
from tests.support.fallback_models import REFUSED, RUN, make, write

Folder = Callable[[str], Path]
LENGTHS = (1, 7, 33, 130)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp("m"))
        return made[name]

    return of


def loaded(path: Path, ops: Ops, dtype: torch.dtype = torch.float32, scheme: str | None = None) -> TransformersModel:
    model = load_model(open_source(path), ops, dtype, quantization=scheme)
    assert isinstance(model, TransformersModel)
    return model


def prompts() -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(3, 103) for _ in range(length)] for length in LENGTHS]


@torch.no_grad()
def theirs(name: str, tokens: list[int]) -> Tensor:
    """[tokens, V] float32."""
    logits: Tensor = make(name)(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("name", RUN)
def test_logits_and_greedy_tokens_equal_transformers(name: str, folder: Folder, ops: Ops) -> None:
    model, asked = loaded(folder(name), ops), prompts()
    together = Stepper(model, EagerOps(ops), sequences=len(asked))
    logits = together.prefill(asked, 50)
    for prompt, ours in zip(asked, logits, strict=True):
        torch.testing.assert_close(ours, theirs(name, prompt), atol=2e-4, rtol=1e-4)
    batched = together.greedy([each[-1] for each in logits], 8)
    for prompt, tokens in zip(asked, batched, strict=True):
        for token in tokens:
            assert int(theirs(name, prompt)[-1].argmax()) == token
            prompt.append(token)


@pytest.mark.parametrize(("scheme", "bound"), [("none", 0.05), ("int8", 0.1), ("int4", 0.6)])
@pytest.mark.parametrize("name", ["arcee", "nemotron", "vaultgemma-caps", "deepseek-v2-narrow-values"])
def test_bfloat16_int8_and_int4(name: str, scheme: str, bound: float, folder: Folder) -> None:
    ops = load_ops("cpu")
    model = loaded(folder(name), ops, torch.bfloat16, scheme)
    ours = torch.cat(Stepper(model, EagerOps(ops)).prefill(prompts()))
    expected = torch.cat([theirs(name, prompt) for prompt in prompts()])
    assert (ours - expected).square().mean().sqrt() < bound * expected.square().mean().sqrt()


def test_float16_weights(folder: Folder) -> None:
    ops = load_ops("cpu")
    model = loaded(folder("arcee"), ops, torch.float16)
    ours = torch.cat(Stepper(model, EagerOps(ops)).prefill(prompts()))
    expected = torch.cat([theirs("arcee", prompt) for prompt in prompts()])
    assert (ours - expected).square().mean().sqrt() < 0.01 * expected.square().mean().sqrt()


@pytest.mark.parametrize("kind", ["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def test_on_cuda(kind: str, folder: Folder) -> None:
    """Through the runner that a device has, in chunks, mixed with decode steps."""
    cuda = CudaOps() if kind == "device" else emulated_ops(check=False)
    model = load_model(open_source(folder("vaultgemma-caps")), cuda, torch.float32)
    driver = Driver(
        model,
        EagerOps(cuda),
        kv_dtype=torch.float32,
        num_pages=40,
        max_num_seqs=4,
        max_model_len=64,
        make=DeviceRunner,
    )
    params = SamplingParams(temperature=0)
    sequences = [driver.start(prompt[:33], params) for prompt in prompts()[:3]]
    driver.step([(sequences[0], 100), (sequences[1], 3)])
    driver.step([(sequences[0], 1), *((s, 20) for s in sequences[1:])])
    driver.finish(sequences, 4)
    for sequence in sequences:
        rows = theirs("vaultgemma-caps", sequence.tokens)[len(sequence.prompt) - 1 : -1]
        assert rows.argmax(-1).tolist() == sequence.output


def test_what_it_says_of_itself(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "octavo_engine"):
        config = loaded(folder("deepseek-v2-narrow-values"), load_ops("cpu")).config
    assert "DeepseekV2ForCausalLM has no file in octavo" in caplog.text
    # keys of 12, values of 10 elements
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (2, 4, 4, 12)
    assert (config.vocab_size, config.hidden_size, config.max_position) == (103, 48, 256)
    assert not config.recordable


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_is_said(name: str, folder: Folder) -> None:
    with pytest.raises(UnsupportedModel, match=REFUSED[name][2]):
        loaded(folder(name), load_ops("cpu"))


def test_what_looks_at_other_tokens_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.arcee.modeling_arcee import ArceeMLP

    original = ArceeMLP.forward
    monkeypatch.setattr(ArceeMLP, "forward", lambda self, x: original(self, x + x.roll(1, dims=1)))
    with pytest.raises(UnsupportedModel, match="nothing but attention looks at other tokens"):
        loaded(folder("arcee"), load_ops("cpu"))


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen9ForCausalLM"], "model_type": "qwen9"}))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"Qwen9ForCausalLM.*allowed: what octavo or transformers has"):
        loaded(tmp_path, load_ops("cpu"))


def test_it_is_not_written_as_a_packed_checkpoint(folder: Folder) -> None:
    with pytest.raises(UnsupportedModel, match=r"ArceeForCausalLM.*allowed: .*LlamaForCausalLM"):
        load_model(open_source(folder("arcee")), load_ops("cpu"), torch.float32, quantization="int8", made={})


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_every_tensor_is_accounted_for(change: str, folder: Folder, tmp_path: Path) -> None:
    source = folder("arcee")
    tensors = load_file(source / "model.safetensors")
    if change == "missing":
        tensors.pop("model.layers.1.mlp.up_proj.weight")
    else:
        tensors["surprise.weight"] = torch.ones(3)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointMismatch, match=f"1 {change} keys as transformers loads ArceeForCausalLM"):
        loaded(tmp_path, load_ops("cpu"))


def test_a_checkpoint_s_own_code_needs_trust(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in no other way: without, the engine says which option would."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    source, target = folder("arcee"), tmp_path / "own"
    target.mkdir()
    config = json.loads((source / "config.json").read_text()) | {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (target / "modeling_own.py").write_text(
        "from transformers import ArceeConfig, ArceeForCausalLM\n\n\n"
        "class OwnConfig(ArceeConfig):\n    model_type = 'own'\n\n\n"
        "class OwnForCausalLM(ArceeForCausalLM):\n    config_class = OwnConfig\n"
    )
    ops = load_ops("cpu")
    with pytest.raises(UnsupportedModel, match=r"OwnForCausalLM.*trust_remote_code=True\) would run"):
        load_model(open_source(target), ops, torch.float32)
    model = load_model(open_source(target), ops, torch.float32, trust_remote_code=True)
    ours = Stepper(model, EagerOps(ops), sequences=1).prefill([prompts()[2]])[0]
    torch.testing.assert_close(ours, theirs("arcee", prompts()[2]), atol=2e-4, rtol=1e-4)
