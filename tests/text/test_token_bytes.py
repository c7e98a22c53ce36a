"""What each token adds to a text: the pieces of a sequence, put together, are its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from octavo_engine.text import Text, TextError, load_text
from tests.text.conftest import CORPUS, sentencepiece_metadata, train_byte_level, write_folder


def joined(text: Text, ids: list[int]) -> bytes:
    pieces, _ = text.token_bytes()
    return b"".join(pieces[token] for token in ids)


@pytest.mark.parametrize("string", [*CORPUS, " a\n\n  b\t", '{"a": [1, "é😀"]}', "<|im_end|>"])
def test_smollm2(smollm: Text, string: str) -> None:
    assert joined(smollm, smollm.encode(string, add_special_tokens=False)) == string.encode()


@pytest.mark.parametrize("string", CORPUS)
def test_byte_level_with_added_tokens(tmp_path: Path, string: str) -> None:
    text = load_text(write_folder(tmp_path / "t", train_byte_level()))
    string += " 日本x"
    assert joined(text, text.encode(string, add_special_tokens=False)) == string.encode()


@pytest.mark.parametrize("string", ["the hat", "日本 é 😀\t\x00", "oooo the"])
def test_sentencepiece_with_byte_fallback(string: str) -> None:
    """All but the text's first space, which belongs to its beginning."""
    text = load_text(metadata=sentencepiece_metadata())
    assert joined(text, text.encode(string, add_special_tokens=False)) == b" " + string.encode()


def test_all_ids_have_an_entry_and_special_ones_are_told(smollm: Text) -> None:
    pieces, special = smollm.token_bytes()
    assert len(pieces) == smollm.vocab_size
    assert pieces[2] == b"<|im_end|>"
    assert {0, 1, 2} <= special
    assert smollm.encode(" the", add_special_tokens=False)[0] not in special


def test_word_pieces_begin_with_a_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "hat": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    pieces, _ = load_text(write_folder(tmp_path / "t", tokenizer)).token_bytes()
    assert pieces == [b" [UNK]", b" hat", b"s"]


def test_tokens_without_a_text_of_their_own(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.CTC()
    with pytest.raises(TextError, match="those around it"):
        load_text(write_folder(tmp_path / "t", tokenizer)).token_bytes()
    with pytest.raises(TextError, match="no tokenizer"):
        Text().token_bytes()
