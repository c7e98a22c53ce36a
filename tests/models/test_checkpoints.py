"""Checkpoint files: every container gives the same tensors, and every tensor is accounted for."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo_engine.models import CheckpointMismatch, load_model
from octavo_engine.ops import Ops
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import SourceError, open_source
from tests.models.family_oracles import expected_logits, prompts
from tests.models.stepper import Stepper
from tests.support.checkpoints import InMemory, TensorsInMemory

Folder = Callable[[str], Path]
FAMILIES = ["llama-mha-tied", "llama-biases", "mistral", "opt", "opt-350m", "gpt2"]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewritten(source: Path, target: Path, tensors: dict[str, Tensor], container: str = "safetensors") -> Path:
    """The same config beside other tensors."""
    target.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", target / "config.json")
    names = list(tensors)
    shards = [{name: tensors[name] for name in names[i::3]} for i in range(3)]
    if container == "safetensors":
        save_file(tensors, target / "model.safetensors")
    elif container == "bin":
        torch.save(tensors, target / "pytorch_model.bin")
    elif container == "old bin":
        torch.save(tensors, target / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        suffix = container.split()[-1]
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        weight_map = {}
        for i, shard in enumerate(shards):
            file = f"{stem}-{i + 1:05}-of-00003.{suffix}"
            weight_map.update(dict.fromkeys(shard, file))
            (save_file if suffix == "safetensors" else torch.save)(shard, target / file)
        (target / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return target


def check_logits(folder: Path, name: str) -> None:
    ops = ReferenceOps()
    model = load_model(open_source(folder), ops, torch.float32)
    for ours, theirs in zip(Stepper(model, ops).prefill(prompts(name)), expected_logits(name), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("container", ["sharded safetensors", "bin", "old bin", "sharded bin"])
@pytest.mark.parametrize("name", ["llama-biases", "opt-350m", "gpt2"])
def test_containers(name: str, container: str, checkpoint: Folder, tmp_path: Path) -> None:
    check_logits(rewritten(checkpoint(name), tmp_path / "m", tensors_of(checkpoint(name)), container), name)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("opt", "model.decoder.", "decoder."), ("opt-350m", "model.decoder.", "decoder."), ("gpt2", "transformer.", "")],
)
def test_older_names(name: str, old: str, new: str, checkpoint: Folder, tmp_path: Path) -> None:
    tensors = tensors_of(checkpoint(name))
    renamed = {key.replace(old, new, 1) if key.startswith(old) else key: value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    check_logits(rewritten(checkpoint(name), tmp_path / "m", renamed), name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_misshapen_tensor_is_an_error(name: str, checkpoint: Folder) -> None:
    """One that is missing or added: test_families, of every family."""
    config, tensors = open_source(checkpoint(name)).config, tensors_of(checkpoint(name))
    for key, value in tensors.items():
        longer = TensorsInMemory(tensors | {key: torch.cat([value, value[:1]])})
        with pytest.raises(CheckpointMismatch, match="shape"):
            load_model(InMemory(config, longer), ReferenceOps(), torch.float32)


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("llama-biases", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("llama-mha-tied", "lm_head.weight"),
        ("opt", "lm_head.weight"),
        ("gpt2", "transformer.h.1.attn.bias"),
        ("gpt2", "h.0.attn.masked_bias"),
        ("gpt2", "lm_head.weight"),
    ],
)
def test_buffers_of_older_files_are_ignored(name: str, buffer: str, checkpoint: Folder, tmp_path: Path) -> None:
    tensors = tensors_of(checkpoint(name))
    assert buffer not in tensors
    check_logits(rewritten(checkpoint(name), tmp_path / "m", tensors | {buffer: torch.full((4,), 9.0)}), name)


@pytest.mark.parametrize("name", ["llama-mha-tied", "opt", "gpt2"])
def test_a_tied_embedding_is_stored_once(name: str, checkpoint: Folder) -> None:
    model: Any = load_model(open_source(checkpoint(name)), ReferenceOps(), torch.bfloat16)
    assert model.embed.table is model.head.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_a_packed_table_equal_plain_ones(dtype: torch.dtype, ops: Ops) -> None:
    table = torch.randn(71, 33).to(dtype)
    ids = torch.tensor([70, 0, 31, 32, 32, 64], dtype=torch.int32)
    assert torch.equal(ops.embedding(ids, ops.pack_linear(table), 1.5), table[ids.long()].float() * 1.5)


def test_progress_counts_the_bytes_of_the_file(checkpoint: Folder, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    tensors = tensors_of(checkpoint("gpt2"))
    tensors["transformer.h.0.attn.bias"] = torch.zeros(5, 5)
    folder = rewritten(checkpoint("gpt2"), tmp_path / "m", tensors)
    load_model(open_source(folder), ReferenceOps(), torch.float32, lambda *event: seen.append(event))
    total = sum(value.nbytes for value in tensors.values())
    assert {event[0] for event in seen} == {"load"}
    assert {event[2] for event in seen} == {total}
    assert [event[1] for event in seen] == sorted(event[1] for event in seen)
    assert seen[-1][1] == total


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("unpickled",)


def test_pickled_code_is_never_run(checkpoint: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copy(checkpoint("gpt2") / "config.json", tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save({"wte.weight": _Evil()}, file)
    with pytest.raises(SourceError, match="weights_only"):
        open_source(tmp_path)
    file.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(SourceError, match="weights_only"):
        open_source(tmp_path)
    assert "unpickled" not in capfd.readouterr().out


def test_what_can_not_be_opened_is_named(checkpoint: Folder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder: /nowhere/at all"):
        open_source("/nowhere/at all")
    with pytest.raises(SourceError, match=r"no such file.*model\.gguf"):
        open_source("model.gguf")
    (tmp_path / "b.gguf").touch()
    with pytest.raises(SourceError, match=r"no config\.json; name one .*: b\.gguf"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="not JSON"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"looked for model\.safetensors, .*pytorch_model\.bin"):
        open_source(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(SourceError, match=r"not there: model-1\.safetensors"):
        open_source(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(SourceError, match="outside its folder"):
        open_source(tmp_path)
    index.unlink()
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 not json")
    with pytest.raises(SourceError, match="not a readable safetensors file"):
        open_source(tmp_path)
    for name in ("model.safetensors.index.json", "config.json"):
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(SourceError, match=f"{name} is not"):
            open_source(tmp_path)


@pytest.mark.parametrize(
    ("shape", "offsets", "message"),
    [
        ([4], [8, 24], "the tensors a and b overlap"),
        ([4.0], [16, 32], "not whole numbers"),
        ([4], [16.0, 32.0], "not whole numbers"),
        ([-4], [16, 32], "passes the file's end"),
        ([1 << 62, 4], [16, 32], "is not 16 bytes"),
    ],
)
def test_contradictory_headers_are_refused(shape: list[Any], offsets: list[Any], message: str, tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": shape, "data_offsets": offsets},
    }
    head = json.dumps(entries).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(32))
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_in_two_files_is_refused(suffix: str, tmp_path: Path) -> None:
    """One of them would win, and which is chance."""
    (tmp_path / "config.json").write_text("{}")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    shards = {f"{stem}-1.{suffix}": ("a", "b"), f"{stem}-2.{suffix}": ("b", "c")}
    for file, names in shards.items():
        shard = {name: torch.zeros(2) for name in names}
        (save_file if suffix == "safetensors" else torch.save)(shard, tmp_path / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SourceError, match=rf"tensor b is both in .*{stem}-1\.{suffix} and in {stem}-2\.{suffix}"):
        open_source(tmp_path)
