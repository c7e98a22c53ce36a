"""The scheme of quantization=None: what is packed as stored, what becomes floats, and that it means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import CheckpointMismatch, Loader
from octavo_engine.models import CausalLM, load_model
from octavo_engine.models.registry import find_model
from octavo_engine.ops import Activations, Ops, PackedLinear, QuantizedWeight, load_ops
from octavo_engine.quant.scheme import Formats
from octavo_engine.quant.stored import StoredScheme
from octavo_engine.weights import open_source
from tests.models.stepper import Stepper
from tests.models.test_gguf import WIDE, random_tensors
from tests.support.gguf_files import dequantized, write_gguf


class Recorder:
    """The packing half of Ops: gives back what it was asked to pack."""

    device = torch.device("cpu")

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if weights == torch.bfloat16 else torch.float32

    def pack_linear(self, weight: Tensor, *, gated: bool = False) -> Any:
        return PackedLinear(weight, weight.shape[0], weight.shape[1], gated)

    def pack_quantized(self, weight: QuantizedWeight, activations: Activations, *, gated: bool = False) -> Any:
        return weight, activations, gated


def stored(dtype: torch.dtype) -> Formats:
    scheme = StoredScheme(dtype, Activations.FLOAT)
    return Formats(scheme, scheme, scheme)


QKV = (("q_proj", "k_proj", "v_proj"), (64, 32, 32))
GATE_UP = (("gate_proj", "up_proj"), (96, 96))


def packed(
    path: Path, quants: dict[str, str], group: str, *, gated: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Any, Loader]:
    """The merged layer of layer 0 as the scheme packs it, out of a file of Q8_0 but for `quants`."""
    source = open_source(write_gguf(path, WIDE, random_tensors(), "Q8_0", quants=quants))
    ops: Any = Recorder()
    loader = Loader(ops, source.checkpoint, dtype, stored(dtype))
    names, sizes = QKV if group == "self_attn" else GATE_UP
    layer = loader.at(f"model.layers.0.{group}.").linear(names, sizes, 64, Parallel.COLUMN, bias=False, gated=gated)
    return layer.weight, loader


@pytest.mark.parametrize(("quant", "bits", "offsets"), [("Q8_0", 8, False), ("Q4_0", 4, False), ("Q4_1", 4, True)])
def test_one_format_is_packed_as_stored(quant: str, bits: int, offsets: bool, tmp_path: Path) -> None:
    (weight, activations, gated), loader = packed(tmp_path / "m.gguf", {"_proj": quant}, "mlp", gated=True)
    assert activations is Activations.FLOAT
    assert gated
    assert (weight.bits, weight.group_size, weight.offsets is not None) == (bits, 32, offsets)
    checkpoint = open_source(tmp_path / "m.gguf").checkpoint
    parts = [checkpoint.get(f"model.layers.0.mlp.{name}.weight") for name in GATE_UP[0]]
    assert torch.equal(dequantized(weight), torch.cat(parts))
    assert "model.layers.0.mlp.gate_proj.weight" not in loader  # accounted for


@pytest.mark.parametrize(
    "quants",
    [
        {"v_proj": "Q4_0"},  # 4 bits beside 8
        {"q_proj": "Q4_1", "k_proj": "Q4_1", "v_proj": "Q4_0"},  # both 4 bits, offsets in some
        {"v_proj": "F16"},
        {"q_proj": "Q5_0"},
        {"_proj": "Q5_1"},
        {"_proj": "BF16"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_formats_become_floats(quants: dict[str, str], dtype: torch.dtype, tmp_path: Path) -> None:
    weight, _ = packed(tmp_path / "m.gguf", quants, "self_attn", dtype=dtype)
    assert isinstance(weight, PackedLinear)
    checkpoint: Any = open_source(tmp_path / "m.gguf").checkpoint
    parts = [checkpoint.get_as(f"model.layers.0.self_attn.{name}.weight", dtype) for name in QKV[0]]
    assert weight.data.dtype == dtype
    assert torch.equal(weight.data, torch.cat(parts))


def test_one_layer_of_its_own_format(tmp_path: Path) -> None:
    """A difference in v leaves gate and up as they are."""
    (weight, _, _), _ = packed(tmp_path / "m.gguf", {"v_proj": "F16"}, "mlp", gated=True)
    assert weight.bits == 8


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    source = open_source(write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(), "Q4_0"))
    ops: Any = Recorder()
    loader = Loader(ops, source.checkpoint, torch.float32, stored(torch.float32))
    with pytest.raises(CheckpointMismatch, match=r"q_proj\.weight has shape \(64, 64\), the config says \(64, 96\)"):
        loader.at("model.layers.0.self_attn.").linear("q_proj", 64, 96, Parallel.COLUMN, bias=False)


def loaded(source: Any, ops: Ops, dtype: torch.dtype, activations: Activations) -> CausalLM:
    scheme = StoredScheme(dtype, activations)
    loader = Loader(ops, source.checkpoint, dtype, Formats(scheme, scheme, scheme))
    return find_model(source.config)(ConfigReader(source.config), loader, None)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_1"])
def test_it_answers_as_its_floats_do(quant: str, ops: Ops, tmp_path: Path) -> None:
    """A wrong row, scale or half byte anywhere would show: embedding, merged, gated and plain layers, tied head."""
    source = open_source(write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(bias=True), quant))
    floats = load_model(source, ops, torch.float32, quantization="none")
    asked = [[3], [5, 17, 80, 2, 2, 41, 95], list(range(40))]
    expected = Stepper(floats, ops).prefill(asked)
    for dtype, activations, bound in (
        (torch.float32, Activations.FLOAT, 1e-4),
        (torch.bfloat16, Activations.FLOAT, 0.03),
        (torch.float32, Activations.INT8, 0.03),
    ):
        answers = Stepper(loaded(source, ops, dtype, activations), ops).prefill(asked)
        for ours, theirs in zip(answers, expected, strict=True):
            assert (ours - theirs).square().mean().sqrt() < bound * theirs.square().mean().sqrt()


@pytest.mark.parametrize("activations", [Activations.FLOAT, Activations.INT8])
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_1"])
def test_law_6(quant: str, activations: Activations, tmp_path: Path) -> None:
    """A prompt's logits to the bit, alone and whole, in a batch, and in chunks (tests/e2e has the real model)."""
    ops = load_ops("cpu")
    source = open_source(write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(bias=True), quant))
    model = loaded(source, ops, torch.bfloat16, activations)
    asked = [[3], list(range(7)), list(range(90, 20, -1)), [8, 1] * 30]
    alone = [Stepper(model, ops).prefill([prompt])[0] for prompt in asked]
    for chunk in (1, 7, 64, 1000):
        for ours, theirs in zip(Stepper(model, ops).prefill(asked, chunk), alone, strict=True):
            assert torch.equal(ours, theirs)
