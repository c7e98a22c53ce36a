"""Tokenizers to test with: the real one of SmolLM2's GGUF file, and tiny ones of each family made here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo_engine.text import Text, load_text
from octavo_engine.weights.gguf_file import GGUFFile

ROOT = Path(__file__).parents[2]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Naïve café, déjà vu! 1234567890",
    "def add(a, b):\n    return a + b\n\n\n# 注释：两数之和 😀 👨‍👩‍👧‍👦 🏳️‍🌈",
    "Ещё одна строка — с тире… und noch eine Zeile über Straßen.",
]


@pytest.fixture(scope="session")
def model_path() -> Path:
    default = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(os.environ.get("OCTAVO_TEST_MODEL") or default)
    if not path.is_file():
        pytest.fail(f"{path} is missing: `make model` (part of `make test`) fetches it")
    return path


@pytest.fixture(scope="session")
def metadata(model_path: Path) -> dict[str, Any]:
    return GGUFFile(model_path).metadata


@pytest.fixture(scope="session")
def smollm(metadata: dict[str, Any]) -> Text:
    return load_text(metadata=metadata)


def train_byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_tokens([AddedToken("日本", normalized=False), AddedToken("é!", normalized=False)])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer | None = None, **files: Any) -> Path:
    """A checkpoint folder; files: name without .json -> its content."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """400 tokens: 0 <s>, 1 </s> special, all bytes, a few words, two added tokens of more than one byte."""
    folder = tmp_path_factory.mktemp("byte_level")
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return load_text(write_folder(folder, train_byte_level(), tokenizer_config=config))


def sentencepiece_metadata() -> dict[str, Any]:
    """0 <unk>, 1 <s>, 2 </s>, 3..258 bytes, then pieces, their scores in no order."""
    words = ["▁", "e", "t", "h", "a", "o", "é", "日", "▁t", "he", "▁the", "▁a", "th", "▁▁", "oo", "▁hat", "hat", "at"]
    letters = [c for c in "bcdfgijklmnpqrsuvwxyz.,!ABC" if c not in words]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *letters]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    prefix = "tokenizer.ggml."
    return {
        prefix + "model": "llama",
        prefix + "tokens": pieces,
        prefix + "scores": [0.0] * 259 + [-float(i * 7 % 53) for i in range(len(words) + len(letters))],
        prefix + "token_type": types,
        prefix + "bos_token_id": 1,
        prefix + "eos_token_id": 2,
        prefix + "unknown_token_id": 0,
    }


@pytest.fixture(scope="session")
def sentencepiece() -> Text:
    return load_text(metadata=sentencepiece_metadata())


@pytest.fixture(scope="session")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """The same vocabulary; the decoder drops up to two leading spaces."""
    backend: Any = load_text(metadata=sentencepiece_metadata())._backend
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    backend.tokenizer.decoder = decoders.Sequence(parts)
    return load_text(write_folder(tmp_path_factory.mktemp("stripped"), backend.tokenizer))


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Text:
    tokens = ["[UNK]", "[CLS]", "the", "##re", "hat", "##s", ".", ",", "n't", "'", "a"]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[CLS]"])
    return load_text(write_folder(tmp_path_factory.mktemp("wordpiece"), tokenizer))


@pytest.fixture(scope="session")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Text:
    pieces = ["<unk>", "▁", "▁the", "he", "▁▁a", "t", "▁hat", "é"]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return load_text(write_folder(tmp_path_factory.mktemp("metaspace"), tokenizer))


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Bytes, by a chain of decoders that no table here knows; its second link does nothing."""
    tokenizer = train_byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip("x", 0, 0)])
    return load_text(write_folder(tmp_path_factory.mktemp("windowed"), tokenizer))


@pytest.fixture(scope="session")
def suffixed(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """The original BPE's `</w>`: its decoder looks at what follows, so it has no table here."""
    pieces = ["the</w>", "th", "e", "e</w>", "hat</w>", "s</w>", "é</w>"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return load_text(write_folder(tmp_path_factory.mktemp("suffixed"), tokenizer))
