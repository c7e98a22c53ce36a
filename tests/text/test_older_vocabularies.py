"""Vocabulary files of older families, converted without their code, and the chat formats that they lack."""

from __future__ import annotations

import base64
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from octavo_engine.text import TextError, load_text
from octavo_engine.text.pieces import _BYTES
from octavo_engine.text.tiktoken import QWEN_SPECIALS
from tests.support.sentencepiece_files import write_sentencepiece
from tests.text.conftest import CORPUS, sentencepiece_metadata, train_byte_level, write_folder

TEXTS = [
    *CORPUS,
    "",
    " ",
    "the  hat",
    " a hat at the\n\n  hat ",
    "日本 é 😀\t\x00",
    "oooo ▁▁the",
    "<s>the</s> <reserved_1> hat",
]
_MORE = ["<reserved_1>", "<reserved_2>"]  # user-defined


def _pieces() -> tuple[list[str], list[float], list[int]]:
    metadata = sentencepiece_metadata()
    tokens, scores, types = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    return [*tokens, *_MORE], [*scores, 0.0, 0.0], [*types, 4, 4]


def _folder(path: Path, kind: str, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    write_sentencepiece(path / "tokenizer.model", *_pieces(), prefix=config.pop("prefix", True))
    return write_folder(path, tokenizer_config={"tokenizer_class": kind, **config})


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("squeeze", [True, False])
def test_sentencepiece_gives_the_ids_of_its_own_library(prefix: bool, squeeze: bool, tmp_path: Path) -> None:
    folder = _folder(tmp_path, "LlamaTokenizer", add_bos_token=False)
    path = write_sentencepiece(folder / "tokenizer.model", *_pieces(), prefix=prefix, squeeze=squeeze)
    own, text = sentencepiece.SentencePieceProcessor(model_file=str(path)), load_text(folder)
    for each in TEXTS:
        if "<s>" not in each:  # which the library takes for five letters
            assert text.encode(each) == own.encode(each)
    assert text.vocab_size == own.vocab_size()


def test_it_is_what_gguf_has(tmp_path: Path) -> None:
    text, other = load_text(_folder(tmp_path, "LlamaTokenizer")), load_text(metadata=sentencepiece_metadata())
    for each in TEXTS:
        if "reserved" not in each:
            assert text.encode(each) == other.encode(each)
            assert text.decode(text.encode(each)) == other.decode(other.encode(each))


@pytest.mark.parametrize(
    ("kind", "config", "first"),
    [
        ("LlamaTokenizer", {}, 1),
        ("LlamaTokenizerFast", {}, 1),
        ("LLaMATokenizer", {"bos_token": "", "eos_token": "", "unk_token": ""}, 1),
        ("InternLMTokenizer", {}, 1),
        ("BaichuanTokenizer", {}, None),
        ("BaichuanTokenizer", {"add_bos_token": True}, 1),
        ("LlamaTokenizer", {"add_bos_token": False}, None),
    ],
)
def test_bos_is_the_class_s_or_the_config_s(
    kind: str, config: dict[str, Any], first: int | None, tmp_path: Path
) -> None:
    text = load_text(_folder(tmp_path, kind, **config))
    bare = text.encode("the hat", add_special_tokens=False)
    assert text.encode("the hat") == ([first] if first is not None else []) + bare
    assert text.bos_token_id == 1
    assert text.eos_token_ids == {2}
    assert text.encode("<reserved_1>", add_special_tokens=False)[-1] == len(_pieces()[0]) - 2


def test_reserved_pieces_take_the_names_that_the_config_gives_them(tmp_path: Path) -> None:
    """InternLM2's model file has [UNUSED_TOKEN_145] where its chats have <|im_end|>."""
    size = len(_pieces()[0])
    added = {str(size - 2): {"content": "<|im_end|>", "special": True}, str(size - 1): {"content": "<|tool|>"}}
    text = load_text(_folder(tmp_path, "InternLM2Tokenizer", added_tokens_decoder=added))
    assert text.encode("<|im_end|><|tool|>", add_special_tokens=False)[-2:] == [size - 2, size - 1]
    assert text.decode([1, size - 2, size - 1]) == "<|tool|>"
    assert text.vocab_size == size
    # nothing is renamed that has its name already
    named = {"1": {"content": "<s>", "special": True}, str(size - 1): {"content": "hat"}}
    text = load_text(_folder(tmp_path, "InternLM2Tokenizer", added_tokens_decoder=named))
    assert text.encode("<reserved_2>", add_special_tokens=False)[-1] == size - 1


@pytest.mark.parametrize(
    ("model_type", "first"),
    [("llama", 1), ("internlm2", 1), ("baichuan", None), ("mistral", 1), ("phi3", 1), ("minicpm", 1)],
)
def test_a_class_that_no_file_names_is_the_model_s(model_type: str, first: int | None, tmp_path: Path) -> None:
    write_sentencepiece(tmp_path / "tokenizer.model", *_pieces())
    text = load_text(write_folder(tmp_path, config={"model_type": model_type}))
    bare = text.encode("the hat", add_special_tokens=False)
    assert text.encode("the hat") == ([first] if first is not None else []) + bare


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_s_special_tokens_are_its_own(model_type: str, tmp_path: Path) -> None:
    """Its vocabulary has LLaMA's too, as words."""
    tokens, types = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "<s>", "</s>"], [3, 3, 3, 2, 1, 4, 4]
    write_sentencepiece(tmp_path / "tokenizer.model", tokens, [0.0] * 7, types, prefix=False)
    text = load_text(write_folder(tmp_path, config={"model_type": model_type}))
    assert text.encode("a<s>a") == [2, 4, 5, 4]
    assert (text.bos_token_id, text.eos_token_ids) == (2, {1})
    assert text.decode([2, 4, 5, 1]) == "a<s>"


def test_what_is_no_bpe_model_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "LlamaTokenizer")
    write_sentencepiece(folder / "tokenizer.model", *_pieces(), kind=1)
    with pytest.raises(TextError, match=r"tokenizer\.model: a SentencePiece model of the kind unigram; 'bpe'"):
        load_text(folder)
    whole = write_sentencepiece(folder / "tokenizer.model", *_pieces()).read_bytes()
    for broken in (b"", b"version https://git-lfs.github.com/spec/v1\n", whole[:-7], b"\x0a\x03abc"):
        (folder / "tokenizer.model").write_bytes(broken)
        with pytest.raises(TextError, match=r"tokenizer\.model is no SentencePiece model"):
            load_text(folder)


def _byte_level_ranks(tokenizer: Tokenizer) -> list[bytes]:
    """A trained byte-level BPE as tiktoken's ranks: bytes first, then what each merge makes."""
    model = json.loads(tokenizer.to_str())["model"]
    merged = ["".join(pair) for pair in model["merges"]]
    return [bytes([byte]) for byte in range(256)] + [bytes(_BYTES[c] for c in token) for token in merged]


def _qwen(path: Path, **files: Any) -> Path:
    lines = [f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(_byte_level_ranks(train_byte_level()))]
    path.mkdir(exist_ok=True)
    (path / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    config = {"model_type": "qwen", "eos_token_id": None}
    return write_folder(path, tokenizer_config={"tokenizer_class": "QWenTokenizer"}, config=config, **files)


def by_rank(ranks: dict[bytes, int], word: bytes) -> list[int]:
    """tiktoken's rule: the neighbours whose whole ranks lowest are joined, the first of equals first."""
    parts = [bytes([byte]) for byte in word]
    while word not in ranks or len(parts) > 1:
        if word in ranks:
            return [ranks[word]]
        pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(pairs, default=(1 << 30, 0))
        if rank == 1 << 30:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def test_tiktoken_gives_the_ids_of_its_rule(tmp_path: Path) -> None:
    text = load_text(_qwen(tmp_path))
    order = _byte_level_ranks(train_byte_level())
    ranks = {token: i for i, token in enumerate(order)}
    for word in re.findall(r"[A-Za-z]+", " ".join(CORPUS)):
        assert text.encode(word) == by_rank(ranks, word.encode())
    for each in (*CORPUS, "\r\n  a\n\nb 12345"):
        assert text.decode(text.encode(each)) == each
    assert len(text.encode("12345")) == 5
    assert text.encode("<|endoftext|>") == [len(order)]
    assert text.encode("<|extra_204|>") == [len(order) + 207]
    assert len(QWEN_SPECIALS) == 208


def test_a_broken_tiktoken_file_is_named(tmp_path: Path) -> None:
    folder = _qwen(tmp_path)
    for broken in ("", "IQ== 0\nIg== 2\n", "IQ==\n", "!! 0\n"):
        (folder / "qwen.tiktoken").write_text(broken)
        with pytest.raises(TextError, match=r"qwen\.tiktoken is not a tiktoken vocabulary"):
            load_text(folder)


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hat"}, {"role": "user", "content": "the"}]


def test_qwen_chats_in_chatml(tmp_path: Path) -> None:
    text = load_text(_qwen(tmp_path, generation_config={"eos_token_id": 151643, "chat_format": "chatml"}))
    assert text.render_chat(CHAT) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\nhat<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "x"}, *CHAT]
    assert text.render_chat(own).startswith("<|im_start|>system\nx<|im_end|>\n<|im_start|>user\na")
    base = text.encode("<|endoftext|>")[0]
    assert text.eos_token_ids == {151643, base, base + 1, base + 2}
    assert text.encode(text.render_chat(CHAT), False)[0] == base + 1


def test_baichuan_chats_with_the_ids_of_its_generation_config(tmp_path: Path) -> None:
    size = len(_pieces()[0])
    ids = {"user_token_id": size - 2, "assistant_token_id": size - 1}
    folder = _folder(tmp_path, "BaichuanTokenizer", prefix=False)
    text = load_text(write_folder(folder, config={"model_type": "baichuan"}, generation_config=ids))
    a, hat, the = (text.encode(word) for word in ("a", "hat", "the"))
    assert text.encode(text.render_chat(CHAT), False) == [size - 2, *a, size - 1, *hat, size - 2, *the, size - 1]
    assert text.decode([size - 1, *hat]) == "hat"
    own = [{"role": "system", "content": "the"}, *CHAT]
    assert text.encode(text.render_chat(own), False)[: len(the) + 1] == [*the, size - 2]
    with pytest.raises(TextError, match="system message stands only at the start"):
        text.render_chat([*CHAT, {"role": "system", "content": "x"}])
    # without those ids, a base model: no template
    write_folder(folder, generation_config={})
    assert not load_text(folder).has_chat_template


def test_internlm_ends_its_turns(tmp_path: Path) -> None:
    tokens, scores, types = _pieces()
    folder = _folder(tmp_path, "InternLMTokenizer")
    write_sentencepiece(
        folder / "tokenizer.model", [*tokens, "<eoh>", "<eoa>"], [*scores, 0, 0], [*types, 4, 4], prefix=False
    )
    write_folder(folder, config={"model_type": "internlm", "eos_token_id": 2})
    assert not load_text(folder).has_chat_template  # nothing tells it from the base model
    text = load_text(folder, name="internlm/internlm-chat-7b")
    assert text.render_chat(CHAT) == "<s><|User|>:a<eoh>\n<|Bot|>:hat<eoa>\n<|User|>:the<eoh>\n<|Bot|>:"
    assert text.eos_token_ids == {2, len(tokens) + 1}
    assert text.encode(text.render_chat(CHAT), False)[0] == 1


def test_a_template_of_the_checkpoint_s_own_wins(tmp_path: Path) -> None:
    config = {"tokenizer_class": "QWenTokenizer", "chat_template": "own"}
    text = load_text(write_folder(_qwen(tmp_path), tokenizer_config=config))
    assert text.render_chat(CHAT) == "own"
    assert len(text.eos_token_ids) == 1


if (REAL := Path(os.environ.get("OCTAVO_VOCABULARIES", "none"))).is_dir():

    @pytest.mark.parametrize("refs", sorted(REAL.glob("*/refs.json")), ids=lambda path: path.parent.name)
    def test_real_vocabularies(refs: Path) -> None:
        """Folders of real files with refs.json, [{"text", "ids"}]."""
        text = load_text(refs.parent)
        for entry in json.loads(refs.read_text(encoding="utf-8")):
            assert text.encode(entry["text"]) == entry["ids"]
            assert text.decode(text.encode(entry["text"]), skip_special_tokens=False).endswith(entry["text"])
