"""ggml's tensor types on random blocks, to the bit of what the gguf package makes of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from octavo_engine.ops import QuantizedWeight
from octavo_engine.weights.gguf_types import GGML_TYPES, type_name
from tests.support.gguf_files import dequantized, random_blocks

BLOCK_TYPES = [kind.name for kind in GGML_TYPES.values() if kind.block > 1]


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_random_blocks(name: str) -> None:
    """Every bit pattern of codes and small scales; what quantises floats would leave some of them out."""
    kind = GGMLQuantizationType[name]
    ours = GGML_TYPES[kind.value]
    assert (ours.block, ours.size) == gguf.GGML_QUANT_SIZES[kind]
    blocks = random_blocks(kind, 257)
    expected = torch.from_numpy(gguf.dequantize(blocks, kind)).view(257, ours.block)
    assert torch.equal(ours.dequantize(torch.from_numpy(blocks)).float(), expected)
    assert len(set(expected.flatten().tolist())) > 100


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_and_scales(name: str) -> None:
    kind = GGMLQuantizationType[name]
    stored = GGML_TYPES[kind.value].codes
    assert stored is not None
    blocks = random_blocks(kind, 257)
    codes = torch.empty(257, 32, dtype=torch.uint8)
    stored.unpack(torch.from_numpy(blocks), codes)
    assert codes.min() == 0
    assert codes.max() == (1 << stored.bits) - 1
    halves = torch.from_numpy(blocks[:, :4].copy()).view(torch.float16)
    weight = QuantizedWeight(codes, halves[:, :1], halves[:, 1:] if stored.offset else None, stored.bits, 32)
    assert torch.equal(dequantized(weight), torch.from_numpy(gguf.dequantize(blocks, kind)).view(257, 32))


def test_only_these_run_as_stored() -> None:
    assert {kind.name for kind in GGML_TYPES.values() if kind.codes} == {"Q4_0", "Q4_1", "Q8_0"}


def test_every_type_has_its_name() -> None:
    unknown = "of no known name"  # to us: the package may know newer ones
    for kind in GGMLQuantizationType:
        assert type_name(kind.value) in (kind.name, unknown)
    assert [type_name(kind) for kind in (0, 14, 20, 23, 29)] == ["F32", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ1_M"]
    assert type_name(200) == unknown


def test_a_nan_scale_stays_one() -> None:
    """A damaged file gives the NaN that every reader gives, not numbers."""
    blocks = random_blocks(GGMLQuantizationType.Q6_K, 3)
    blocks[1, 208:] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    out = GGML_TYPES[GGMLQuantizationType.Q6_K.value].dequantize(torch.from_numpy(blocks))
    assert out.isnan().any(dim=1).tolist() == [False, True, False]
