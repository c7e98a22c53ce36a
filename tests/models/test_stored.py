"""The scheme of quantization=None: what is packed as stored, and what becomes floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.layers.linear import Parallel
from octavo_engine.layers.loading import CheckpointMismatch, Loader
from octavo_engine.ops import Activations, PackedLinear, QuantizedWeight
from octavo_engine.quant.stored import StoredScheme
from octavo_engine.weights import open_source
from tests.models.test_gguf import WIDE, random_tensors
from tests.support.gguf_files import dequantized, write_gguf


class Recorder:
    """The packing half of Ops: gives back what it was asked to pack."""

    def pack_linear(self, weight: Tensor, *, gated: bool = False) -> Any:
        return PackedLinear(weight, weight.shape[0], weight.shape[1], gated)

    def pack_quantized(self, weight: QuantizedWeight, activations: Activations, *, gated: bool = False) -> Any:
        return weight, activations, gated


QKV = (("q_proj", "k_proj", "v_proj"), (64, 32, 32))
GATE_UP = (("gate_proj", "up_proj"), (96, 96))


def packed(
    path: Path, quants: dict[str, str], group: str, *, gated: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Any, Loader]:
    """The merged layer of layer 0 as the scheme packs it, out of a file of Q8_0 but for `quants`."""
    source = open_source(write_gguf(path, WIDE, random_tensors(), "Q8_0", quants=quants))
    ops: Any = Recorder()
    loader = Loader(ops, source.checkpoint, dtype, StoredScheme(dtype, Activations.FLOAT))
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
    loader = Loader(ops, source.checkpoint, torch.float32, StoredScheme(torch.float32))
    with pytest.raises(CheckpointMismatch, match=r"q_proj\.weight has shape \(64, 64\), the config says \(64, 96\)"):
        loader.at("model.layers.0.self_attn.").linear("q_proj", 64, 96, Parallel.COLUMN, bias=False)
