"""GGUF files of the llama architecture: written here with the gguf package, and the real one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo_engine.models import CausalLM, CheckpointMismatch, load_model
from octavo_engine.ops import Ops, load_ops
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import SourceError, gguf_checkpoint, open_source
from octavo_engine.weights.gguf_file import GGUFFile
from tests.models.families_llama import LLAMA3
from tests.models.family_oracles import expected_logits, oracle, prompts, reference_logits
from tests.models.stepper import Stepper
from tests.support.checkpoints import real_model
from tests.support.gguf_files import as_stored, dequantized, permuted, write_gguf
from tests.support.oracle import transformers_smollm2

Folder = Callable[[str], Path]
QUANTS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


WIDE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
WIDER = WIDE | {"hidden_size": 256, "intermediate_size": 512}  # rows of whole blocks of 256


def random_tensors(config: dict[str, Any] = WIDE, *, bias: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, width = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (96, hidden), "model.norm.weight": (hidden,)}
    for i in range(2):
        layer = f"model.layers.{i}."
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden // 2, hidden),
            ("self_attn.v_proj", hidden // 2, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", width, hidden),
            ("mlp.up_proj", width, hidden),
            ("mlp.down_proj", hidden, width),
        ):
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if bias and "attn" in name:
                shapes[f"{layer}{name}.bias"] = (rows,)
        shapes[layer + "input_layernorm.weight"] = shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def published(name: str, value: Tensor, quant: str, config: dict[str, Any] = WIDE) -> Tensor:
    """What the gguf package makes of the tensor in a file of this type, in published row order."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    moved = next((count for part, count in heads.items() if part in name), None)
    data, kind = as_stored(permuted(value, moved) if moved else value, quant if value.ndim == 2 else "F32")
    out = torch.from_numpy(np.array(gguf.dequantize(data, kind)))
    return out.unflatten(0, (moved, -1, 2)).transpose(1, 2).reshape(value.shape) if moved else out


@pytest.mark.parametrize("quant", QUANTS + K_QUANTS)
def test_tensors_equal_the_gguf_packages_own(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = WIDER if quant in K_QUANTS else WIDE
    tensors = random_tensors(config, bias=True)
    monkeypatch.setattr(gguf_checkpoint, "_PIECE", 1000)
    source = open_source(write_gguf(tmp_path / "m.gguf", config, tensors, quant))
    assert isinstance(source.checkpoint, gguf_checkpoint.GGUFCheckpoint)
    assert source.kind == "gguf"
    assert set(source.checkpoint.names()) == set(tensors)
    for name, value in tensors.items():
        read = source.checkpoint.get(name)
        assert torch.equal(read.float(), published(name, value, quant, config)), name
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(source.checkpoint.get_as(name, dtype), read.to(dtype)), name
    assert sum(map(source.checkpoint.nbytes, source.checkpoint.names())) <= source.path.stat().st_size


@pytest.mark.parametrize("quant", QUANTS + K_QUANTS)
def test_codes_as_stored(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q8_0, Q4_0 and Q4_1 come as codes and scales that mean the same to the bit; the others don't come."""
    config = WIDER if quant in K_QUANTS else WIDE
    tensors = random_tensors(config, bias=True)
    monkeypatch.setattr(gguf_checkpoint, "_PIECE", 1000)
    checkpoint = open_source(write_gguf(tmp_path / "m.gguf", config, tensors, quant)).checkpoint
    assert isinstance(checkpoint, gguf_checkpoint.GGUFCheckpoint)
    for name, value in tensors.items():
        weight = checkpoint.get_quantized(name)
        if value.ndim == 1 or quant not in ("Q8_0", "Q4_0", "Q4_1"):
            assert weight is None, name
            continue
        assert weight is not None
        assert (weight.bits, weight.group_size) == (8 if quant == "Q8_0" else 4, 32)
        assert (weight.offsets is not None) == (quant == "Q4_1")
        assert weight.codes.shape == value.shape
        assert weight.codes.dtype == torch.uint8
        assert weight.scales.shape == (value.shape[0], value.shape[1] // 32)
        assert weight.scales.dtype == torch.float16
        assert torch.equal(dequantized(weight), published(name, value, quant)), name


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_released_pages_come_back(quant: str, tmp_path: Path) -> None:
    tensors = random_tensors()
    checkpoint = open_source(write_gguf(tmp_path / "m.gguf", WIDE, tensors, quant)).checkpoint
    assert isinstance(checkpoint, gguf_checkpoint.GGUFCheckpoint)
    held = {name: checkpoint.get(name) for name in tensors}  # of F32, views of the file
    for name in tensors:
        checkpoint.release(name)
    for name, value in tensors.items():
        assert torch.equal(held[name], published(name, value, quant)), name
        assert torch.equal(checkpoint.get(name), held[name]), name


def test_config_and_metadata(tmp_path: Path) -> None:
    tensors = random_tensors(bias=True)
    source = open_source(write_gguf(tmp_path / "m.gguf", WIDE, tensors, "Q8_0", general__name="tiny"))
    assert {key: source.config[key] for key in WIDE} == pytest.approx(WIDE)
    assert source.config["architectures"] == ["LlamaForCausalLM"]
    assert source.config["head_dim"] == 16
    assert source.config["attention_bias"] is True
    assert source.config["mlp_bias"] is False
    assert source.config["tie_word_embeddings"] is True
    assert source.config["rope_parameters"] == {"rope_theta": 10000.0}
    assert source.gguf_metadata["general.name"] == "tiny"
    assert source.gguf_metadata["tokenizer.ggml.tokens"][5] == "<5>"
    assert source.gguf_metadata["tokenizer.ggml.token_type"] == [1] * 96
    assert source.gguf_metadata["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize("name", ["llama", "llama-mha-tied", "llama-mqa-tied"])
def test_a_converted_model_answers_as_before(name: str, ops: Ops, checkpoint: Folder, tmp_path: Path) -> None:
    tensors = load_file(checkpoint(name) / "model.safetensors")
    config = oracle(name).config.to_dict()
    model = load_model(open_source(write_gguf(tmp_path / "m.gguf", config, tensors, "F32")), ops, torch.float32)
    for ours, theirs in zip(Stepper(model, ops).prefill(prompts(name)), expected_logits(name), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_llama3_scaling_comes_as_divisors(checkpoint: Folder, tmp_path: Path) -> None:
    name, ops = "llama-llama3", ReferenceOps()
    tensors = load_file(checkpoint(name) / "model.safetensors")
    # The converter's own formula, a frequency at a time.
    divisors = []
    for i in range(4):
        wavelength = 2 * np.pi * 10000.0 ** (2 * i / 8)
        original, factor = LLAMA3["original_max_position_embeddings"], LLAMA3["factor"]
        low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
        smooth = (original / wavelength - low) / (high - low)
        blend = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(1.0 if wavelength < original / high else factor if wavelength > original / low else blend)
    tensors["rope_freqs.weight"] = torch.tensor(divisors)
    values = oracle(name).config.to_dict() | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    path = write_gguf(tmp_path / "m.gguf", values, tensors, "F32")
    model = load_model(open_source(path), ops, torch.float32)
    for ours, theirs in zip(Stepper(model, ops).prefill(prompts(name)), expected_logits(name), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_other_scalings(more: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    keys = {f"llama__rope__scaling__{key}": value for key, value in more.items()}
    source = open_source(write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(), "F16", **keys))
    assert source.config["rope_parameters"] == {"rope_theta": 10000.0, **expected}
    load_model(source, ReferenceOps(), torch.float32)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = random_tensors()
    with pytest.raises(SourceError, match=r"token_embd\.weight has ggml type 20 \(IQ4_NL\); read are F32, F16, Q4_0"):
        open_source(write_gguf(path, WIDE, tensors, "IQ4_NL"))
    with pytest.raises(SourceError, match=r"the metadata lacks llama\.expert_used_count"):
        open_source(write_gguf(path, WIDE, tensors, "F16", llama__expert_count=8))
    with pytest.raises(SourceError, match=r"key_length 32|dimension_count 16"):
        open_source(write_gguf(path, WIDE, tensors, "F16", llama__attention__key_length=32))
    writer = gguf.GGUFWriter(path, "qwen9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"architecture 'qwen9'; read are .*llama, .*qwen3"):
        open_source(path)
    source = open_source(write_gguf(path, WIDE, tensors | {"blk.0.attn_sinks.weight": torch.ones(4)}, "F16"))
    with pytest.raises(CheckpointMismatch, match=r"not used: blk\.0\.attn_sinks\.weight"):
        load_model(source, ReferenceOps(), torch.float32)


def test_a_cut_or_damaged_file_is_a_typed_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(), "Q4_0").read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [0, 3, 20, 24, 40, 90, 300, 1000, 3000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError):
            open_source(path)
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, 4000, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            list(open_source(path).checkpoint.names())
        except SourceError:
            continue


def made(keys: list[tuple[str, bytes]], tensors: list[tuple[str, tuple[int, ...], int]]) -> bytes:
    """A GGUF file of F32 tensors, (name, sizes, offset), with 64 bytes of them."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    head += b"".join(string(key) + value for key, value in keys)
    for name, sizes, offset in tensors:
        head += string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, offset)
    return head + bytes(-len(head) % 32 + 64)


WHOLE = ("general.alignment", struct.pack("<II", 4, 32))
VECTOR = ("a.weight", (8,), 0)


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ([("general.alignment", struct.pack("<II", 4, 0))], [VECTOR], "general.alignment is 0; allowed: a multiple"),
        ([("general.alignment", struct.pack("<II", 4, 12))], [VECTOR], "general.alignment is 12"),
        ([("general.alignment", struct.pack("<IQ1s", 8, 1, b"8"))], [VECTOR], "general.alignment is '8'"),
        ([WHOLE, WHOLE], [VECTOR], "the key general.alignment stands there twice"),
        ([], [VECTOR, VECTOR], r"tensor a\.weight \[8\] stands there twice"),
        ([], [("a.weight", (8, 0), 0)], r"a\.weight \[8, 0\] .* is empty"),
        ([], [("a.weight", (8,), 6)], r"a\.weight at 6 is not aligned to 32"),
    ],
)
def test_a_contradictory_file_is_a_typed_error(
    keys: list[tuple[str, bytes]], tensors: list[tuple[str, tuple[int, ...], int]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(made([WHOLE], [VECTOR]))
    assert GGUFFile(path).tensors["a.weight"].shape == (8,)
    path.write_bytes(made(keys, tensors))
    with pytest.raises(SourceError, match=message):
        GGUFFile(path)


def test_the_real_file_reads_as_the_gguf_package_does() -> None:
    file = GGUFFile(real_model())
    assert len(file.tensors) == 272
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert file.metadata["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert len(file.metadata["tokenizer.ggml.merges"]) == 48900
    assert file.metadata["llama.rope.freq_base"] == 100000.0


@pytest.fixture(scope="session")
def real_answers() -> list[tuple[list[int], Tensor]]:
    """Random prompts and transformers' float32 logits of the real model, read through the gguf package."""
    model = transformers_smollm2()
    generator = torch.Generator().manual_seed(2)
    asked = [torch.randint(3, 49152, (n,), generator=generator).tolist() for n in (1, 7, 33, 130)]
    return [(prompt, reference_logits(model, prompt)) for prompt in asked]


def check_real_model(model: CausalLM, ops: Ops, real_answers: list[tuple[list[int], Tensor]]) -> None:
    """In float32 as exact as that, in bfloat16 within the rounding of activations."""
    exact = model.config.dtype == torch.float32
    logits = Stepper(model, ops).prefill([prompt for prompt, _ in real_answers])
    for ours, (_, theirs) in zip(logits, real_answers, strict=True):
        assert (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt() < (2e-5 if exact else 0.02)
        if exact:
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
            assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_model_equals_transformers(
    dtype: torch.dtype, ops: Ops, real_answers: list[tuple[list[int], Tensor]]
) -> None:
    model = load_model(open_source(real_model()), ops, dtype, quantization="none")
    check_real_model(model, ops, real_answers)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_model_as_stored_equals_transformers(
    dtype: torch.dtype, real_answers: list[tuple[list[int], Tensor]]
) -> None:
    """Its 4-bit weights mean what their floats do."""
    ops = load_ops("cpu")
    check_real_model(load_model(open_source(real_model()), ops, dtype), ops, real_answers)
