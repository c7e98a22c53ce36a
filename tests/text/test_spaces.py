"""LlamaTokenizer's space before a text: transformers' `legacy` and `add_prefix_space`, held to its own tokenizers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken

from octavo_engine.text import load_text
from tests.text.conftest import CORPUS, write_folder

TEXTS = [
    *CORPUS,
    "",
    " ",
    "the fox",
    " the",
    "   the  fox ",
    "▁the",
    "\n the\n\n",
    "日本 é 😀\t\x00",
    "</s>the fox",
    "<s>the</s> the</s>",
    "</s></s>the",
    " </s>  </s> ",
    "<unk>the",
    "the</s>\nthe</s>日本",
]
USER_DEFINED = ["the<tool>the", "a <tool> the", "<tool>", "</s><tool>fox<tool></s>the"]


def train(path: Path, **more: Any) -> Path:
    """A model of the kind that LLaMA has, and a user-defined piece."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=file,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **more},
    )
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "tokenizer.model")


def folder(path: Path, model: Path, **config: Any) -> Path:
    write_folder(path, tokenizer_config={"tokenizer_class": "LlamaTokenizer", **config})
    (path / "tokenizer.model").write_bytes(model.read_bytes())
    return path


def fast(model: Path, kind: str, **options: Any) -> Any:
    """transformers' own class over the model's pieces and the merges that transformers makes of them."""
    import transformers
    from transformers.tokenization_utils_base import generate_merges

    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocab = {own.id_to_piece(i): i for i in range(own.vocab_size())}
    scores = {own.id_to_piece(i): own.get_score(i) for i in range(own.vocab_size())}
    tokenizer = getattr(transformers, kind)(vocab=vocab, merges=generate_merges(vocab, scores, ["<tool>"]), **options)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    return tokenizer


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}], ids=str)
def test_without_legacy_the_space_stands_where_the_text_begins(
    options: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    text = load_text(folder(tmp_path, model, legacy=False, **options))
    theirs = fast(model, "LlamaTokenizer", legacy=False, **options)
    for each in (*TEXTS, *USER_DEFINED):
        ids = text.encode(each, add_special_tokens=False)
        assert ids == theirs.encode(each, add_special_tokens=False)
        assert text.encode(each) == [1, *ids]
        assert text.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_code_llama_never_has_it_elsewhere(model: Path, tmp_path: Path) -> None:
    text = load_text(folder(tmp_path, model, tokenizer_class="CodeLlamaTokenizer"))
    theirs = fast(model, "CodeLlamaTokenizer")
    for each in (*TEXTS, *USER_DEFINED):
        assert text.encode(each) == theirs.encode(each)


@pytest.mark.parametrize("config", [{"legacy": True}, {"legacy": None}, {}], ids=str)
def test_legacy_is_the_library_s_own_way_between_special_tokens(
    config: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    text = load_text(folder(tmp_path, model, **config))
    theirs = SentencePieceBackend(
        vocab_file=str(model), legacy=True, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    for each in TEXTS:
        assert text.encode(each, add_special_tokens=False) == theirs.encode(each, add_special_tokens=False)
    bare = load_text(folder(tmp_path, model, **config, add_prefix_space=False))
    the = text.encode("the", add_special_tokens=False)
    assert bare.encode(" the</s> the", add_special_tokens=False) == [*the, 2, *the]


def test_the_model_s_own_normalisation(tmp_path: Path) -> None:
    model = train(tmp_path / "m.model", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    text = load_text(folder(tmp_path / "folder", model, add_bos_token=False))
    for each in ("ﬁ ① Ａ  ｶ the", "e\u0301 \u00a0 fox\u3000", *CORPUS):
        assert text.encode(each) == own.encode(each)


def test_a_folder_with_nothing_but_the_model_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    text = load_text(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert text.encode("the quick fox") == [1, *own.encode("the quick fox")]
    assert (text.bos_token_id, text.eos_token_ids) == (1, {2})
    named = load_text(write_folder(tmp_path / "model", config={}), tokenizer=str(tmp_path))
    assert named.encode("the") == text.encode("the")
    by_file = load_text(write_folder(tmp_path / "model", config={}), tokenizer=str(tmp_path / "tokenizer.model"))
    assert by_file.encode("the") == text.encode("the")
