"""Hub ids, with the hub's client replaced: no test reaches a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from octavo_engine.weights import SourceError, open_source
from tests.models.family_oracles import oracle


class Hub:
    """What huggingface_hub would do: `folder` is the snapshot, None where the hub can't be reached."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.calls: list[dict[str, Any]] = []

    def snapshot_download(self, repo: str, **options: Any) -> str:
        self.calls.append({"repo": repo, **options})
        if self.folder is None:
            raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the requested files\nand more")
        if "tqdm_class" in options:
            bar = options["tqdm_class"](total=100, desc="Downloading", unit="B", name="huggingface_hub.x")
            bar.update(40)
            bar.update(60)
            bar.close()
        return str(self.folder)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> Hub:
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_hub_id_is_fetched_without_bin_where_it_has_safetensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    oracle("gpt2").save_pretrained(tmp_path)
    capfd.readouterr()
    hub = install(monkeypatch, tmp_path)
    seen: list[tuple[str, int, int, str]] = []
    source = open_source("owner/name", "v1", lambda *event: seen.append(event))
    assert source.config["model_type"] == "gpt2"
    assert [call["repo"] for call in hub.calls] == ["owner/name"]
    assert hub.calls[0]["revision"] == "v1"
    assert "model*.safetensors" in hub.calls[0]["allow_patterns"]
    assert not [pattern for pattern in hub.calls[0]["allow_patterns"] if "bin" in pattern]
    assert seen == [("download", 40, 100, "Downloading"), ("download", 100, 100, "Downloading")]
    assert capfd.readouterr() == ("", "")


def test_bin_files_are_fetched_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = install(monkeypatch, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="no weights"):
        open_source("owner/name")
    assert hub.calls[1]["allow_patterns"] == ["pytorch_model*.bin"]


def test_unreachable_and_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    with pytest.raises(SourceError, match=r"'owner/name' is no local path.*revision 'v2'.*requested files$"):
        open_source("owner/name", "v2")


def test_what_is_no_hub_id_either() -> None:
    with pytest.raises(SourceError, match="no local path and no hub id"):
        open_source("not a model!")


def test_one_gguf_file_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = install(monkeypatch, tmp_path)
    with pytest.raises(SourceError, match=r"owner/name has no file file-Q4_0\.gguf"):
        open_source("owner/name/file-Q4_0.gguf")
    assert hub.calls[0]["repo"] == "owner/name"
    assert hub.calls[0]["allow_patterns"] == ["file-Q4_0.gguf"]
    (tmp_path / "file-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"file-Q4_0\.gguf is not a whole GGUF file"):
        open_source("owner/name/file-Q4_0.gguf")


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")  # opening it to read would wait for a writer
    with pytest.raises(SourceError, match=r"pipe\.gguf is neither a folder with config\.json nor a \.gguf file"):
        open_source(tmp_path / "pipe.gguf")
    with pytest.raises(SourceError, match="can't be read: File name too long"):
        open_source("x" * 5000)
