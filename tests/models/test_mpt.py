"""MPT's variants that transformers' own code ignores, against the equations (mpt_equations)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo_engine.models import CheckpointMismatch, load_model
from octavo_engine.ops import Ops, load_ops
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.models import mpt_equations
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten

VOCAB, HIDDEN = 103, 48
SINGLE = {"attn_type": "multiquery_attention"}
GROUPED = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "multi-query": ({}, SINGLE),
    "multi-query-normalised": ({"no_bias": False}, SINGLE | {"qk_ln": True, "clip_qkv": 1.5}),
    "grouped": ({"expansion_ratio": 3, "logit_scale": "inv_sqrt_d_model"}, GROUPED),
    "grouped-normalised": ({"n_heads": 4}, GROUPED | {"qk_ln": True, "alibi_bias_max": 16}),
    "learned-positions": ({"no_bias": False}, {"alibi": False}),
    "learned-positions-grouped": ({"logit_scale": 0.3}, GROUPED | {"alibi": False, "softmax_scale": 0.2}),
}


def write(variant: str, folder: Path) -> Path:
    """A random checkpoint under published names."""
    own, attn = VARIANTS[variant]
    config = {"architectures": ["MPTForCausalLM"], "model_type": "mpt", "vocab_size": VOCAB, "d_model": HIDDEN}
    config |= {"n_heads": 6, "n_layers": 2, "max_seq_len": 160, "expansion_ratio": 4, "no_bias": True} | own
    config["attn_config"] = {"attn_type": "multihead_attention", "alibi": True} | attn
    kind, heads, d = config["attn_config"]["attn_type"], config["n_heads"], HIDDEN // config["n_heads"]
    groups = {"multihead_attention": heads, "multiquery_attention": 1}.get(kind, 2)
    width = config["expansion_ratio"] * HIDDEN
    shapes: dict[str, tuple[int, ...]] = {"transformer.norm_f": (HIDDEN,)}
    for i in range(2):
        at = f"transformer.blocks.{i}."
        shapes |= {at + "norm_1": (HIDDEN,), at + "norm_2": (HIDDEN,), at + "attn.out_proj": (HIDDEN, HIDDEN)}
        shapes |= {at + "attn.Wqkv": (HIDDEN + 2 * groups * d, HIDDEN)}
        shapes |= {at + "ffn.up_proj": (width, HIDDEN), at + "ffn.down_proj": (HIDDEN, width)}
        if attn.get("qk_ln"):
            shapes |= {at + "attn.q_ln": (HIDDEN,), at + "attn.k_ln": (groups * d,)}
    generator = torch.Generator().manual_seed(3)

    def random_of(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"transformer.wte.weight": random_of(VOCAB, HIDDEN)}
    if not config["attn_config"]["alibi"]:
        tensors["transformer.wpe.weight"] = random_of(160, HIDDEN)
    for name, shape in shapes.items():
        plain = len(shape) == 2
        tensors[f"{name}.weight"] = random_of(*shape) * (1.6 / shape[-1] ** 0.5 if plain else 0.4) + (not plain)
        if not config["no_bias"]:
            tensors[f"{name}.bias"] = random_of(shape[0]) * 0.4
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def equations(folder: Path, ids: list[int]) -> torch.Tensor:
    tensors = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    found = mpt_equations.logits(json.loads((folder / "config.json").read_text()), tensors, ids)
    return torch.from_numpy(found.astype(np.float32))


def test_the_equations_are_the_original_s() -> None:
    folder = Path(__file__).parent / "oracles" / "mpt-qkln-clip-bias16"
    rows = load_file(folder / "logits.safetensors")["last_logits"]
    for entry, row in zip(json.loads((folder / "oracle.json").read_text())["prompts"], rows, strict=True):
        torch.testing.assert_close(equations(folder, entry["ids"])[-1], row, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_greedy_tokens(variant: str, ops: Ops, tmp_path: Path) -> None:
    folder, rng = write(variant, tmp_path / "m"), random.Random(variant)
    asked = [[rng.randrange(VOCAB) for _ in range(length)] for length in (1, 7, 33, 130)]
    model = load_model(open_source(folder), ops, torch.float32)
    stepper = Stepper(model, ops, sequences=4)
    logits = stepper.prefill(asked, 50)
    for prompt, ours in zip(asked, logits, strict=True):
        torch.testing.assert_close(ours, equations(folder, prompt), atol=1e-4, rtol=1e-5)
    drawn = stepper.greedy([rows[-1] for rows in logits], 20)
    for prompt, tokens in zip(asked, drawn, strict=True):
        rows = equations(folder, prompt + tokens)[len(prompt) - 1 : -1]
        assert rows.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_counts(variant: str, tmp_path: Path) -> None:
    folder = write(variant, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        rest = {other: value for other, value in tensors.items() if other != name}
        with pytest.raises(CheckpointMismatch, match="missing"):
            load_model(open_source(rewritten(folder, tmp_path / "less", rest)), ReferenceOps(), torch.float32)


@pytest.mark.parametrize(("scheme", "bound"), [("none", 0.05), ("int8", 0.1), ("int4", 0.5)])
@pytest.mark.parametrize("variant", ["grouped-normalised", "learned-positions"])
def test_bfloat16_int8_and_int4(variant: str, scheme: str, bound: float, tmp_path: Path) -> None:
    folder, ops, prompt = write(variant, tmp_path / "m"), load_ops("cpu"), [7 * i % VOCAB for i in range(130)]
    model = load_model(open_source(folder), ops, torch.bfloat16, quantization=scheme)
    ours, theirs = Stepper(model, ops, recorded=True).prefill([prompt])[0], equations(folder, prompt)
    assert (ours - theirs).square().mean().sqrt() < bound * theirs.square().mean().sqrt()
