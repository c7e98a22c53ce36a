"""Packed checkpoints on disk: the quantised cache and the folders of `octavo quantize`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.options import Quantization
from octavo_engine import config
from octavo_engine.models import UnsupportedModel, load_model, quantization_of
from octavo_engine.ops import Ops, load_ops
from octavo_engine.quantize import QuantizeFailed, write_folder
from octavo_engine.text import load_text
from octavo_engine.weights import QuantizedCache, SourceError, open_source, packed_file, quantized_cache
from octavo_engine.weights.packed_file import PackedFile, write_packed
from tests.models.family_oracles import prompts
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten
from tests.support.checkpoints import real_model, tiny_llama

Folder = Callable[[str], Path]
SHORT = ["int4:symmetric,lm_head", "int4:g128,asymmetric,no_lm_head", "int8:float,embeddings", "llm_int8"]
MODELS = ["llama-biases", "llama-mha-tied", "opt-350m", "gpt2"]


@pytest.fixture
def cache(tmp_path: Path) -> QuantizedCache:
    return QuantizedCache(tmp_path / "cache", "0.1.0")


@pytest.fixture
def model_folder(checkpoint: Folder, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoint("llama-biases"), tmp_path / "model"))


def load(folder: Path, ops: Ops, cache: QuantizedCache | None, short: str | None = "int4", **more: Any) -> Any:
    return load_model(open_source(folder), ops, torch.bfloat16, quantization=short, cache=cache, **more)


def logits(model: Any, ops: Ops, name: str = "llama-biases") -> list[Tensor]:
    return Stepper(model, ops).prefill(prompts(name))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def only_file(cache: QuantizedCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


@pytest.mark.parametrize("short", SHORT)
@pytest.mark.parametrize("name", MODELS)
def test_the_second_start_reads_the_cache_alone(
    name: str, short: str, checkpoint: Folder, tmp_path: Path, cache: QuantizedCache
) -> None:
    ops = load_ops("cpu")
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "model"))
    first = logits(load(folder, ops, cache, short), ops, name)
    source = open_source(folder)

    def refuse(name: str) -> Tensor:
        raise AssertionError(f"{name} was read from the float checkpoint")

    source.checkpoint.get = refuse  # type: ignore[method-assign]
    second = load_model(source, ops, torch.bfloat16, quantization=short, cache=cache)
    assert same(logits(second, ops, name), first)


def test_activations_share_a_file_and_storage_does_not(model_folder: Path, cache: QuantizedCache) -> None:
    ops = load_ops("cpu")
    load(model_folder, ops, cache, "int8")
    written = only_file(cache).stat().st_mtime_ns
    model = load(model_folder, ops, cache, "llm_int8:threshold=3")
    assert only_file(cache).stat().st_mtime_ns == written
    assert model.head.weight.threshold == 3.0
    load(model_folder, ops, cache, "int4")
    load(model_folder, ops, cache, "int4:g64")
    load_model(open_source(model_folder), ops, torch.float32, quantization="int4", cache=cache)
    assert len(list(cache.folder.iterdir())) == 4


@pytest.mark.parametrize("short", [None, "none"])
def test_floats_are_not_cached(short: str | None, model_folder: Path, cache: QuantizedCache) -> None:
    load(model_folder, load_ops("cpu"), cache, short)
    assert not cache.folder.exists()


def change_version(folder: Path, cache: QuantizedCache) -> QuantizedCache:
    return QuantizedCache(cache.folder, "9.9.9")


def change_weights(folder: Path, cache: QuantizedCache) -> QuantizedCache:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, folder / "model.safetensors")
    return cache


def change_content_under_the_same_size_and_time(folder: Path, cache: QuantizedCache) -> QuantizedCache:
    path = folder / "model.safetensors"
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    return cache


def change_config(folder: Path, cache: QuantizedCache) -> QuantizedCache:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 1e-5}))
    return cache


@pytest.mark.parametrize(
    "change", [change_version, change_weights, change_content_under_the_same_size_and_time, change_config]
)
def test_what_is_out_of_date_is_written_over(
    change: Callable[[Path, QuantizedCache], QuantizedCache],
    model_folder: Path,
    cache: QuantizedCache,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ops = load_ops("cpu")
    load(model_folder, ops, cache)
    before = only_file(cache).read_bytes()
    other = change(model_folder, cache)
    with caplog.at_level(logging.INFO, "octavo.engine"):
        fresh = logits(load(model_folder, ops, other), ops)
    assert "another version" in caplog.text
    assert only_file(cache).read_bytes() != before
    assert same(fresh, logits(load(model_folder, ops, None), ops))
    caplog.clear()
    assert same(fresh, logits(load(model_folder, ops, other), ops))
    assert not caplog.records


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    save_file({"a": torch.ones(4)}, path)


def other_layout(path: Path) -> None:
    raw = path.read_bytes()
    assert raw.count(b'\\"layout\\": 1') == 1
    path.write_bytes(raw.replace(b'\\"layout\\": 1', b'\\"layout\\": 7'))


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign, other_layout])
def test_a_damaged_file_is_said_and_made_anew(
    damage: Callable[[Path], None], model_folder: Path, cache: QuantizedCache, caplog: pytest.LogCaptureFixture
) -> None:
    ops = load_ops("cpu")
    expected = logits(load(model_folder, ops, cache), ops)
    whole = only_file(cache).read_bytes()
    damage(only_file(cache))
    assert same(logits(load(model_folder, ops, cache), ops), expected)
    assert "made anew" in caplog.text
    assert only_file(cache).read_bytes() == whole


def test_a_folder_that_can_not_be_written_is_said(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    load(model_folder, load_ops("cpu"), QuantizedCache(tmp_path / "file" / "cache", "0.1.0"))
    assert "quantized_cache is not written" in caplog.text


def test_a_folder_that_can_not_be_looked_into_is_said(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As another user's is; a name that no file system takes fails in the same places, for root too."""
    load(model_folder, load_ops("cpu"), QuantizedCache(tmp_path / ("x" * 300), "0.1.0"))
    assert caplog.text.count("File name too long") == 2


def test_a_full_disk_is_said_and_leaves_nothing(
    model_folder: Path, cache: QuantizedCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ops = load_ops("cpu")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packed_file._Sums, "add", no_space)
        load(model_folder, ops, cache)
    assert "No space left" in caplog.text
    assert list(cache.folder.iterdir()) == []
    caplog.clear()
    monkeypatch.setattr(quantized_cache, "_KEEP_FREE", 1 << 60)
    load(model_folder, ops, cache)
    assert "GB free" in caplog.text
    assert list(cache.folder.iterdir()) == []


def test_a_model_of_the_hub_has_one_file_for_all_revisions(model_folder: Path, cache: QuantizedCache) -> None:
    """As the hub's own cache lays them: links to blobs."""
    keys = set()
    for revision in ("a" * 40, "b" * 40):
        snapshot = cache.folder.parent / "hub/models--owner--name/snapshots" / revision
        blobs = Path(shutil.copytree(model_folder, snapshot.parents[1] / "blobs" / revision))
        snapshot.mkdir(parents=True)
        for blob in blobs.iterdir():
            (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
        load(snapshot, load_ops("cpu"), cache)
        assert only_file(cache).name.startswith("owner--name-")
        keys.add(PackedFile(only_file(cache)).settings["key"])
    assert len(keys) == 2


def test_what_a_killed_engine_left_is_swept(model_folder: Path, cache: QuantizedCache) -> None:
    cache.folder.mkdir()
    old, new = cache.folder / ".a-1.tmp", cache.folder / ".b-2.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    load(model_folder, load_ops("cpu"), cache)
    assert not old.exists()
    assert new.exists()


def test_the_file_is_one_that_others_read(model_folder: Path, cache: QuantizedCache) -> None:
    model = load(model_folder, load_ops("cpu"), cache)
    with safe_open(only_file(cache), "pt") as file:
        name = "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight"
        assert torch.equal(file.get_tensor(name), model.layers[0].attention.qkv.weight.data)
        settings = json.loads(file.metadata()["octavo"])
    assert settings["quantization"]["group_size"] == 32
    assert settings["weights"][name]["bits"] == 4


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_chunks_and_threads(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "_CHUNK", 1000)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "codes": torch.randint(0, 255, (3, 4160), dtype=torch.uint8, generator=generator),
        "odd": torch.randn(7, generator=generator).bfloat16(),
        "norm": torch.randn(33, generator=generator),
        "none": torch.empty(0, 5),
    }
    settings = {"octavo": "1", "quantization": {}, "dtype": "bfloat16", "weights": {}}
    seen: list[int] = []
    write_packed(tmp_path / "f", tensors, settings, lambda stage, done, total, text: seen.append(done))
    assert seen == sorted(seen)
    file = PackedFile(tmp_path / "f")
    read = file.read(lambda n: torch.empty(n, dtype=torch.uint8), threads=threads)
    for name, value in tensors.items():
        assert torch.equal(read[name], value)
        assert torch.equal(file.get(name), value)
        assert read[name].data_ptr() % value.element_size() == 0
    assert os.listdir(tmp_path) == ["f"]


# ---- octavo quantize -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_written_folder_runs_alone_and_alike(name: str, checkpoint: Folder, tmp_path: Path) -> None:
    ops = load_ops("cpu")
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / "model"))
    expected = logits(load(folder, ops, None, "int4:g64"), ops, name)
    quantization = Quantization("int4", 64)
    write_folder(open_source(folder), ops, torch.bfloat16, quantization, tmp_path / "out")
    shutil.rmtree(folder)
    source = open_source(tmp_path / "out")
    assert source.kind == "packed"
    assert same(logits(load(tmp_path / "out", ops, None, None), ops, name), expected)
    assert same(logits(load(tmp_path / "out", ops, None, "int4:g64"), ops, name), expected)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (told["quant_method"], told["description"], told["group_size"]) == (
        "octavo",
        "int4 g64 asymmetric W4A8, lm_head int8",
        64,
    )


def test_a_written_folder_keeps_its_storage(model_folder: Path, tmp_path: Path) -> None:
    ops = load_ops("cpu")
    write_folder(open_source(model_folder), ops, torch.bfloat16, Quantization("int8"), tmp_path / "out")
    source = open_source(tmp_path / "out")
    for other in ("int4", "none", "int8:no_lm_head"):
        with pytest.raises(UnsupportedModel, match=r"int8 W8A8, which .*octavo\.safetensors holds"):
            quantization_of(source.checkpoint, other)
    running = quantization_of(source.checkpoint, "int8:float")
    assert running is not None
    assert running.activations == "float"
    with pytest.raises(QuantizeFailed, match="quantised already"):
        write_folder(source, ops, torch.bfloat16, Quantization("int4"), tmp_path / "again")
    assert not (tmp_path / "again").exists()
    flip(tmp_path / "out" / "octavo.safetensors")
    with pytest.raises(SourceError, match="checksum"):
        load(tmp_path / "out", ops, None, None)


def test_a_written_folder_runs_in_another_dtype(model_folder: Path, tmp_path: Path) -> None:
    ops = load_ops("cpu")
    quantization = Quantization("int4", lm_head=False)
    write_folder(open_source(model_folder), ops, torch.bfloat16, quantization, tmp_path / "out")
    model: Any = load_model(open_source(tmp_path / "out"), ops, torch.float32)
    assert model.embed.table.dtype == model.head.weight.data.dtype == torch.float32
    logits(model, ops)


def test_a_gguf_file_keeps_its_tokenizer(tmp_path: Path) -> None:
    source = open_source(real_model())
    write_folder(source, load_ops("cpu"), torch.bfloat16, Quantization("int4"), tmp_path / "out")
    written = open_source(tmp_path / "out")
    assert written.gguf_metadata == source.gguf_metadata
    assert written.config == source.config
    text = load_text(written)
    assert text.has_chat_template
    assert text.eos_token_ids == load_text(source).eos_token_ids


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from octavo.cli import main; sys.exit(main())", "quantize"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    (model / "tokenizer_config.json").write_text("{}")
    (model / "LICENSE").write_text("free")
    flags = ["--scheme", "int4", "--group-size", 64, "--lm-head", "float", "--activations", "float"]
    done = run(model, tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    assert "int4 g64 asymmetric W4A16, lm_head float" in done.stderr
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path / "out")) == [
        "LICENSE",
        "config.json",
        "octavo.safetensors",
        "tokenizer_config.json",
    ]
    ops = load_ops("cpu")
    written: Any = load_model(open_source(tmp_path / "out"), ops, torch.float32)
    assert not written.layers[0].mlp.up.weight.symmetric
    again = run(model, tmp_path / "out")
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].endswith("exists and is not an empty folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "int3"], "quantization='int3'"),
        (["--scheme", "none"], "nothing to do"),
        (["--group-size", "16"], "one of 32, 64, 128"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path / "model", tmp_path / "out", *arguments)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.quantized_folder("auto") == tmp_path / "octavo" / "quantized"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert config.quantized_folder("auto") == Path("/home/someone/.cache/octavo/quantized")
    assert config.quantized_folder("~/here") == Path("/home/someone/here")


def test_float_tensors_are_released_as_they_are_read(checkpoint: Folder, tmp_path: Path) -> None:
    """Releasing loses nothing: a second read finds the file's bytes again."""
    folder = rewritten(checkpoint("gpt2"), tmp_path / "m", load_file(checkpoint("gpt2") / "model.safetensors"))
    source = open_source(folder)
    released = []
    release = source.checkpoint.release  # type: ignore[attr-defined]
    source.checkpoint.release = lambda name: (released.append(name), release(name))  # type: ignore[attr-defined]
    load_model(source, load_ops("cpu"), torch.float32, quantization="int4")
    assert "transformer.wte.weight" in released
    assert "transformer.h.0.mlp.c_fc.weight" in released
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(source.checkpoint.get(name), value)
