"""Checkpoints' own tokenizer code: run with trust_remote_code alone, and never where it is not needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_engine.text import TextError, load_text
from tests.support.tokenizer_code import add_tokenizer_code
from tests.text.conftest import train_byte_level, write_folder
from tests.text.test_older_vocabularies import _folder, _qwen


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies code before it imports it: into this test's folder."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")


def test_code_of_the_checkpoint_s_own_needs_trust(tmp_path: Path) -> None:
    write_folder(tmp_path, config={"model_type": "llama", "eos_token_id": 2})
    witness = add_tokenizer_code(tmp_path)
    with pytest.raises(TextError, match=r"BackwardTokenizer\) is code of .*EngineOptions\(trust_remote_code=True\)"):
        load_text(tmp_path)
    assert not witness.exists()
    text = load_text(tmp_path, trust_remote_code=True)
    assert witness.exists()
    assert text.encode("abc", add_special_tokens=False) == [28, 27, 26]
    assert text.decode([28, 27, 26]) == "abc"
    assert (text.eos_token_ids, text.bos_token_id, text.vocab_size) == ({2}, 1, 32)


def test_as_the_tokenizer_of_another_model_too(tmp_path: Path) -> None:
    model, named = tmp_path / "model", tmp_path / "tokenizer"
    write_folder(model, config={"eos_token_id": 2})
    witness = add_tokenizer_code(write_folder(named))
    with pytest.raises(TextError, match="trust_remote_code=True"):
        load_text(model, tokenizer=str(named))
    assert not witness.exists()
    assert load_text(model, tokenizer=str(named), trust_remote_code=True).encode("z", False) == [3]


def test_code_that_breaks_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, config={"model_type": "llama"})
    add_tokenizer_code(tmp_path)
    (tmp_path / "tokenization_own.py").write_text("raise OSError('broken on purpose')")
    with pytest.raises(TextError, match=r"can't load the tokenizer.*broken on purpose.*EngineOptions\.tokenizer"):
        load_text(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        ("BaichuanTokenizer", "baichuan"),
        ("InternLMTokenizer", "internlm"),
        ("InternLM2Tokenizer", "internlm2"),
        ("QWenTokenizer", "qwen"),
        ("PreTrainedTokenizerFast", "llama"),
    ],
)
def test_a_known_format_is_read_without_the_code(kind: str, model_type: str, trusted: bool, tmp_path: Path) -> None:
    if kind == "QWenTokenizer":
        _qwen(tmp_path)
    elif kind == "PreTrainedTokenizerFast":
        write_folder(tmp_path, train_byte_level())
    else:
        _folder(tmp_path, kind)
    write_folder(tmp_path, config={"model_type": model_type})
    witness = add_tokenizer_code(tmp_path, kind)
    text = load_text(tmp_path, trust_remote_code=trusted)
    assert text.decode(text.encode("the hat")) == "the hat"
    assert not witness.exists()
