"""The incremental decode is the tokenizer's whole decode, whatever the tokens and however they are cut in pushes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.options import SamplingParams
from octavo_engine.text import Detokenizer, Text
from tests.text.conftest import sentencepiece_metadata
from tests.text.test_stop import reference

FAMILIES = ["byte_level", "sentencepiece", "wordpiece", "metaspace", "suffixed", "windowed", "stripped"]
HOLD = 32  # bytes of a run of byte tokens that are held at most


def oracle(text: Text) -> Any:
    """The library's own tokenizer behind a Text."""
    backend: Any = text._backend
    return backend.tokenizer


def run(text: Text, pushes: Iterable[list[int]], params: SamplingParams, prompt: tuple[int, ...] = ()) -> list[str]:
    """The texts of the pieces, up to a stop string; the last push is final."""
    detokenizer = Detokenizer(text, params, prompt)
    pieces = []
    for push in [*pushes, None]:
        piece = detokenizer.push(push or [], final=push is None)
        pieces.append(piece.text)
        if piece.stop is not None:
            break
    return pieces


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pushes, start = [], 0
    for size in sizes:
        pushes.append(ids[start : start + size])
        start += size
    return [*pushes, ids[start:]]


# Few ids near 0 (special tokens and bytes), more anywhere, some beyond the vocabulary.
ids_of_any_vocabulary = st.lists(
    st.one_of(st.integers(0, 12), st.integers(3, 330), st.integers(100, 290), st.sampled_from([402, 5000])),
    max_size=HOLD,
)
sizes = st.lists(st.integers(0, 3), max_size=HOLD)


def test_each_family_is_decoded_its_own_way(text_of: dict[str, Text]) -> None:
    kinds = {family: type(text.stream()).__name__ for family, text in text_of.items()}
    local, window = "LocalStream", "WindowStream"
    streams = ["ByteLevelStream", "ByteFallbackStream", local, local, window, window, "ByteFallbackStream"]
    assert kinds == dict(zip(FAMILIES, streams, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=150)
@given(ids=ids_of_any_vocabulary, sizes=sizes)
def test_deltas_are_the_whole_decode(
    family: str, skip: bool, ids: list[int], sizes: list[int], text_of: dict[str, Text]
) -> None:
    text = text_of[family]
    if family == "stripped":
        ids = [259, 259, 259, *ids]  # more leading spaces than it drops
    expected = oracle(text).decode(ids, skip_special_tokens=skip)
    pieces = run(text, cut(ids, sizes), SamplingParams(skip_special_tokens=skip))
    assert "".join(pieces) == expected == text.decode(ids, skip)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_that_no_vocabulary_has_are_no_text(family: str, text_of: dict[str, Text]) -> None:
    text = text_of[family]
    assert text.decode([3, -1, 1 << 32, 4, 1 << 70, -(1 << 70)]) == text.decode([3, 4])


@settings(max_examples=100)
@given(st.data())
def test_what_is_no_character_is_not_held_for_ever(windowed: Text, data: st.DataObject) -> None:
    """The window decodes all that it holds again for each token: a long answer that is no text stays cheap."""
    tokens = byte_ids(windowed, "windowed")
    part = st.one_of(st.binary(max_size=40), st.text(max_size=8).map(str.encode), st.just(b"\xe6\x97" * 20))
    ids = [tokens[byte] for raw in data.draw(st.lists(part, max_size=6)) for byte in raw]
    stream: Any = windowed.stream()
    text = ""
    for token in ids:
        text += stream.feed([token])
        assert len(stream._window) < 3 * stream.HOLD
    assert text + stream.flush() == oracle(windowed).decode(ids)


@settings(max_examples=100)
@given(st.data())
def test_real_vocabulary(smollm: Text, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 49151), max_size=60))
    skip = data.draw(st.booleans())
    pieces = run(smollm, cut(ids, data.draw(sizes)), SamplingParams(skip_special_tokens=skip))
    assert "".join(pieces) == oracle(smollm).decode(ids, skip_special_tokens=skip)


@pytest.fixture(scope="session")
def text_of(request: pytest.FixtureRequest) -> dict[str, Text]:
    return {family: request.getfixturevalue(family) for family in FAMILIES}


def byte_ids(text: Text, family: str) -> list[int]:
    """The token of each byte."""
    if family == "sentencepiece":
        return list(range(3, 259))
    from octavo_engine.text.pieces import _BYTES

    return [oracle(text).token_to_id(char) for char, _ in sorted(_BYTES.items(), key=lambda item: item[1])]


@pytest.mark.parametrize(("family", "step"), [("byte_level", 1), ("sentencepiece", 7)])
def test_every_code_point_in_pieces(family: str, step: int, text_of: dict[str, Text]) -> None:
    """Of the two planes in use each `step`-th, of the planes beyond, all alike, far fewer."""
    text = text_of[family]
    tokens = byte_ids(text, family)
    used, beyond = range(0, 0x20000, step), range(0x20000, sys.maxunicode + 1, 31)
    points = [p for p in (*used, *beyond) if not 0xD800 <= p < 0xE000]
    string = "".join(map(chr, points))
    ids = [tokens[byte] for byte in string.encode()]
    detokenizer = Detokenizer(text, SamplingParams(), prompt_token_ids=[tokens[65]])
    pieces = [detokenizer.push(ids[i : i + 7]).text for i in range(0, len(ids), 7)]
    pieces.append(detokenizer.push([], final=True).text)
    assert "".join(pieces) == string


@pytest.mark.parametrize("family", ["byte_level", "sentencepiece"])
def test_a_character_comes_out_whole(family: str, text_of: dict[str, Text]) -> None:
    text = text_of[family]
    tokens = byte_ids(text, family)
    family_emoji = "👨‍👩‍👧‍👦"
    for string in (family_emoji, "é", "日本", "🏳️‍🌈x"):
        pushes = [[tokens[byte]] for byte in string.encode()]
        pieces = run(text, pushes, SamplingParams())
        assert "".join(pieces) == string
        assert not any("\ufffd" in piece for piece in pieces)
        # cut in the middle: what is missing shows at the end, not before
        pieces = run(text, pushes[:-1] if string[-1] != "x" else pushes[:-2], SamplingParams())
        assert "\ufffd" in pieces[-1]
        assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_complete_characters_do_not_wait(byte_level: Text) -> None:
    tokens = byte_ids(byte_level, "byte_level")
    detokenizer = Detokenizer(byte_level, SamplingParams())
    seen = [detokenizer.push([tokens[byte]]).text for byte in "aé日😀".encode()]
    assert seen == ["a", "", "é", "", "", "日", "", "", "", "😀"]


def naive_fallback(pieces: list[str]) -> str:
    """SentencePiece pieces to text: a run of byte tokens is decoded whole, or if it is invalid each byte of it that
    had not gone out is U+FFFD; characters go out once the run has more than HOLD bytes."""
    text = ""
    for run_, piece in re.findall(r"((?:<0x..>)+)|((?:(?!<0x..>).)+)", "".join(pieces), re.DOTALL):
        raw = bytes(int(byte, 16) for byte in re.findall("<0x(..)>", run_))
        sent = 0
        for size in range(1, len(raw) + 1):
            try:
                raw[:size].decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    break
                if size > HOLD:
                    sent = error.start
            else:
                if size > HOLD:
                    sent = size
        try:
            text += raw.decode()
        except UnicodeDecodeError:
            text += raw[:sent].decode() + "\ufffd" * (len(raw) - sent)
        text += piece.replace("▁", " ")
    return text.removeprefix(" ")


@settings(max_examples=200)
@given(st.data())
def test_long_byte_runs(sentencepiece: Text, data: st.DataObject) -> None:
    part = st.one_of(
        st.text(st.characters(min_codepoint=0x400, exclude_categories=["Cs"]), max_size=25).map(
            lambda s: [byte + 3 for byte in s.encode()]
        ),
        st.lists(st.integers(3 + 0x80, 258), max_size=2),
        st.lists(st.integers(259, 290), max_size=2),
    )
    ids = [token for tokens in data.draw(st.lists(part, max_size=4)) for token in tokens]
    names = sentencepiece_metadata()["tokenizer.ggml.tokens"]
    pieces = run(sentencepiece, cut(ids, data.draw(sizes)), SamplingParams())
    assert "".join(pieces) == naive_fallback([names[i] for i in ids])
    if all(token not in range(3, 259) for token in ids[HOLD:]):
        assert "".join(pieces) == oracle(sentencepiece).decode(ids)


def test_a_long_valid_run_streams(sentencepiece: Text) -> None:
    string = "ሰላም ልዑል " * 8
    ids = [byte + 3 for byte in string.replace(" ", "").encode()]
    detokenizer = Detokenizer(sentencepiece, SamplingParams())
    pieces = [detokenizer.push([token]).text for token in ids]
    assert "".join(pieces) == string.replace(" ", "")
    assert max(map(len, pieces)) <= HOLD // 3 + 1


def test_the_leading_space_depends_on_what_stands_before(sentencepiece: Text) -> None:
    prompt, output = sentencepiece.encode("the hat"), sentencepiece.encode(" a hat")[1:]
    space = sentencepiece.encode("a hat")[1:]  # starts with the prefix space
    assert "".join(run(sentencepiece, [space], SamplingParams())) == "a hat"
    assert "".join(run(sentencepiece, [space], SamplingParams(), tuple(prompt))) == " a hat"
    assert "".join(run(sentencepiece, [space], SamplingParams(), (1,))) == "a hat"  # after BOS alone
    shown = SamplingParams(skip_special_tokens=False)
    assert "".join(run(sentencepiece, [space], shown, (1,))) == " a hat"
    assert sentencepiece.decode(prompt + space) == "the hat a hat"
    assert "".join(run(sentencepiece, [output], SamplingParams())) == " a hat"


def test_word_pieces_go_on_after_the_prompt(wordpiece: Text) -> None:
    ids = [2, 4, 5]
    assert "".join(run(wordpiece, [ids], SamplingParams())) == "the hats"
    assert "".join(run(wordpiece, [ids], SamplingParams(), (1, 2))) == " the hats"


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = Detokenizer(Text(), SamplingParams(stop="x"))
    assert detokenizer.push([1, 2, 3]).text == ""
    assert detokenizer.push([4], final=True).text == ""


# ---- with stop strings ---------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.data())
def test_stop_strings_across_tokens(text_of: dict[str, Text], data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["byte_level", "sentencepiece", "wordpiece"]))
    text = text_of[family]
    ids = data.draw(ids_of_any_vocabulary)
    whole = text.decode(ids)
    starts = st.integers(0, max(0, len(whole) - 1))
    stops = tuple(
        whole[i : i + data.draw(st.integers(1, 6))] + data.draw(st.sampled_from(["", "", "e", "\n"]))
        for i in data.draw(st.lists(starts, min_size=1, max_size=3))
        if whole
    ) or ("none",)
    include = data.draw(st.booleans())
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    expected, _ = reference(whole, stops, include)
    sent = ""
    for piece in run(text, cut(ids, data.draw(sizes)), params):
        sent += piece
        assert expected.startswith(sent)  # nothing leaks
    assert sent == expected


def test_the_stop_string_is_told_and_nothing_follows(byte_level: Text) -> None:
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=("dog", "fox")))
    ids = byte_level.encode("the quick brown fox jumps over")
    pieces = [detokenizer.push([token]) for token in ids]
    assert "".join(piece.text for piece in pieces) == "the quick brown "
    assert [piece.stop for piece in pieces if piece.stop] == ["fox"]
    assert detokenizer.push([], final=True).text == ""


def test_text_held_for_a_stop_string_comes_at_the_end(byte_level: Text) -> None:
    detokenizer = Detokenizer(byte_level, SamplingParams(stop="foxtrot"))
    assert detokenizer.push(byte_level.encode("a fox")).text == "a "
    assert detokenizer.push([], final=True) == detokenizer.push([]).__class__("fox", None)


def test_the_missing_bytes_can_complete_a_stop_string(byte_level: Text) -> None:
    tokens = byte_ids(byte_level, "byte_level")
    detokenizer = Detokenizer(byte_level, SamplingParams(stop="a\ufffd"))
    assert detokenizer.push([tokens[ord("b")], tokens[ord("a")], tokens[0xE6]]).text == "b"
    piece = detokenizer.push([], final=True)
    assert (piece.text, piece.stop) == ("", "a\ufffd")


@settings(max_examples=200)
@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=2), sizes)
def test_min_tokens(byte_level: Text, string: str, stops: list[str], sizes: list[int]) -> None:
    tokens = byte_ids(byte_level, "byte_level")
    ids = [tokens[ord(char)] for char in string]  # a character a token
    for least in (0, 1, 3, 30):
        params = SamplingParams(stop=tuple(stops), min_tokens=least, max_tokens=100)
        expected, _ = reference(string, tuple(stops), False, after=least)
        assert "".join(run(byte_level, cut(ids, sizes), params)) == expected
