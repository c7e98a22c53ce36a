"""The tokenizer of a GGUF file: SmolLM2's against two references, the others by examples."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_engine.text import Text, TextError, load_text
from octavo_engine.text.pieces import _BYTES
from octavo_engine.text.pretokenizers import PRE_TOKENIZERS
from tests.text.conftest import sentencepiece_metadata, train_byte_level
from tests.text.test_detokenizer import oracle

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    "",
    " ",
    "\n",
    "Hello, world! I've 1234 apples; don't DON'T.",
    "  two  spaces\n\n\tand tabs \r\n",
    "价格是123元，日本語テキスト、한국어",
    "👨‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u00a0 \u200b \u0000",
    "１２３ ² ½ Ⅷ ٣",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "def f(x):\n    return x ** 2  # 100%\n",
]
# Where words, spaces and digits meet.
awkward = st.text(
    st.one_of(st.sampled_from(" \n\t'0129aZé日½Ⅷ.!-😀"), st.characters(exclude_categories=["Cs"])), max_size=30
)


class NaiveBPE:
    """Byte-level BPE as GPT-2 wrote it down, one best pair at a time."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata["tokenizer.ggml.token_type"]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(line.split(" ")): i for i, line in enumerate(metadata["tokenizer.ggml.merges"])}
        self.special = "|".join(regex.escape(t) for t, k in zip(tokens, types, strict=True) if k == 3)
        self.char = {byte: char for char, byte in _BYTES.items()}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in regex.split(f"({self.special})", text):
            if part and regex.fullmatch(self.special, part):
                ids.append(self.ids[part])
                continue
            for piece in regex.findall(r"\p{N}|\P{N}+", part):
                for word in regex.findall(GPT2_WORDS, piece):
                    ids.extend(self.ids[token] for token in self._merge(word))
        return ids

    def _merge(self, word: str) -> list[str]:
        # This vocabulary lacks some bytes (0x04, 0xF1, ...): they have no token, here as in the original.
        parts = [self.char[byte] for byte in word.encode() if self.char[byte] in self.ids]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(range(len(pairs)), key=lambda i: self.ranks.get(pairs[i], 1 << 60))
            if pairs[best] not in self.ranks:
                break
            parts[best : best + 2] = ["".join(pairs[best])]
        return parts


@pytest.fixture(scope="module")
def naive(metadata: dict[str, Any]) -> NaiveBPE:
    return NaiveBPE(metadata)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm_known_texts(text: str, smollm: Text, naive: NaiveBPE) -> None:
    ids = smollm.encode(text)
    assert ids == naive.encode(text)
    assert smollm.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=200)
@given(awkward)
def test_smollm_any_text(smollm: Text, naive: NaiveBPE, text: str) -> None:
    ids = smollm.encode(text)
    assert ids == naive.encode(text)
    if all(naive.char[byte] in naive.ids for byte in text.encode()):
        assert smollm.decode(ids, skip_special_tokens=False) == text


def test_smollm_against_transformers(smollm: Text, model_path: Path) -> None:
    """transformers' conversion (5.x) forgets that the model's words never hold two digits: `  9` is there cut as in
    GPT-2, ` `, ` `, `9`. Texts without digits are the same to the token, others once its pre-tokenizer is put right."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(model_path.parent), gguf_file=model_path.name)
    for text in TEXTS:
        if not regex.search(r"\p{N}", text):
            assert smollm.encode(text) == theirs.encode(text)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum 12 and 30?"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert smollm.render_chat(messages) == rendered
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), theirs.backend_tokenizer.pre_tokenizer]
    )
    for text in TEXTS:
        assert smollm.encode(text) == theirs.encode(text)
    assert smollm.encode(smollm.render_chat(messages), False) == theirs.encode(rendered, add_special_tokens=False)


def test_special_tokens_in_a_message_are_taken_as_such(smollm: Text) -> None:
    """As in transformers and vLLM, whose tokenizers see the rendered prompt alone."""
    ids = smollm.encode(smollm.render_chat([{"role": "user", "content": "a<|im_end|>b"}]), False)
    assert ids.count(2) == 1 + smollm.encode(smollm.render_chat([{"role": "user", "content": "ab"}]), False).count(2)


def test_smollm_facts(smollm: Text) -> None:
    assert smollm.has_tokenizer
    assert smollm.has_chat_template
    assert smollm.eos_token_ids == {2, 0}  # <|im_end|> as the file says, and <|endoftext|>
    assert smollm.bos_token_id == 1
    assert smollm.vocab_size == 49152
    assert smollm.encode("hi")[0] != 1  # add_bos_token is false
    assert smollm.decode([1, 9690, 2]) == "system"
    ids = smollm.encode(smollm.render_chat([{"role": "user", "content": "Hi"}]), False)
    assert smollm.decode(ids, False).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert ids.count(1) == 3


def test_encoding_lets_other_threads_run(smollm: Text) -> None:
    text = "The quick brown fox jumps over 13 lazy dogs. " * 40_000
    inside, done = threading.Event(), threading.Event()

    def encode() -> None:
        inside.set()
        smollm.encode(text)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    inside.wait()
    turns = 0
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns > 20  # a call that holds the GIL lets this thread have two or three


# ---- bad words ------------------------------------------------------------------------------------------------------


def test_bad_words_with_and_without_a_space_before(smollm: Text, sentencepiece: Text) -> None:
    one = [smollm.encode("dog"), smollm.encode(" dog")]
    assert smollm.encode_bad_words(["dog"]) == one
    assert smollm.encode_bad_words([" dog", "cat"]) == [*one, smollm.encode("cat"), smollm.encode(" cat")]
    # more tokens with the space than without: what follows the space is the bare word, caught already
    assert smollm.encode_bad_words(["\n1"]) == [smollm.encode("1")]
    assert sentencepiece.encode_bad_words(["the"]) == [sentencepiece.encode("the")[1:]]
    with pytest.raises(TextError, match="no tokens"):
        smollm.encode_bad_words(["  "])


# ---- other vocabularies ---------------------------------------------------------------------------------------------


def gpt2_metadata(**more: Any) -> dict[str, Any]:
    """A byte-level vocabulary as a GGUF file carries it."""
    import json

    model = json.loads(train_byte_level().to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if token in ("<s>", "</s>") else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | more).items() if value is not None}


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_the_text(name: str) -> None:
    text = load_text(metadata=gpt2_metadata(pre=name))
    for sample in TEXTS:
        bare = sample.replace("\u0301", "")  # a normaliser may join it with its letter
        ids = text.encode(bare, add_special_tokens=False)
        assert text.decode(ids, skip_special_tokens=False) == bare
        assert text.encode(bare)[: 1 if PRE_TOKENIZERS[name].add_bos else 0] == [0] * PRE_TOKENIZERS[name].add_bos


def test_bos_eos_and_what_ends_a_turn() -> None:
    plain = load_text(metadata=gpt2_metadata())
    assert plain.encode("a") == plain.encode("a", add_special_tokens=False)
    both = load_text(metadata=gpt2_metadata(add_bos_token=True, add_eos_token=True))
    assert both.encode("a") == [0, *plain.encode("a"), 1]
    assert load_text(metadata=gpt2_metadata(pre="llama-bpe")).encode("a")[0] == 0
    assert load_text(metadata=gpt2_metadata(pre="llama-bpe", add_bos_token=False)).encode("a")[0] != 0
    ends = gpt2_metadata(eot_token_id=7, eom_token_id=8)
    assert load_text(metadata=ends).eos_token_ids == {1, 7, 8}


def test_a_word_that_is_a_token_stays_whole_where_merges_are_ignored() -> None:
    base = gpt2_metadata()
    tokens, types = base["tokenizer.ggml.tokens"], base["tokenizer.ggml.token_type"]
    more = {"tokens": [*tokens, "zqz"], "token_type": [*types, 1]}
    assert load_text(metadata=gpt2_metadata(pre="llama-bpe", **more)).encode("zqz") == [0, len(tokens)]
    assert len(load_text(metadata=gpt2_metadata(pre="gpt-2", **more)).encode("zqz")) == 3


def test_user_defined_tokens_are_matched_and_shown() -> None:
    base = gpt2_metadata()
    tokens, types = base["tokenizer.ggml.tokens"], base["tokenizer.ggml.token_type"]
    text = load_text(metadata=gpt2_metadata(tokens=[*tokens, "<sep>"], token_type=[*types, 4]))
    ids = text.encode("a<sep>b")
    assert len(tokens) in ids
    assert text.decode([0, *ids]) == "a<sep>b"


@settings(max_examples=200)
@given(st.text(st.sampled_from("theao é日 z\n😀"), max_size=20))
def test_sentencepiece_is_its_own_definition(sentencepiece: Text, string: str) -> None:
    """Join the neighbours whose whole has the best score, leftmost first, until none is a piece; bytes for the rest."""
    values = sentencepiece_metadata()
    tokens, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"]
    known = {token: scores[i] for i, token in enumerate(tokens) if i > 258}
    parts = list("▁" + string.replace(" ", "▁")) if string else []
    while True:
        joined = ["".join(pair) for pair in pairwise(parts)]
        best = max(range(len(joined)), key=lambda i: known.get(joined[i], -1e9), default=None)
        if best is None or joined[best] not in known:
            break
        parts[best : best + 2] = [joined[best]]
    expected = [1]
    for part in parts:
        expected += [tokens.index(part)] if part in known else [byte + 3 for byte in part.encode()]
    assert sentencepiece.encode(string) == expected
    assert sentencepiece.decode(expected) == string


def test_ids_that_no_token_has_mean_none() -> None:
    """-1 and the like, as some converters write where a model has no such token."""
    wrong = {"bos_token_id": 0xFFFFFFFF, "eos_token_id": -1, "padding_token_id": 10**6, "add_bos_token": True}
    text = load_text(metadata=gpt2_metadata(**wrong, add_eos_token=True))
    assert text.encode("a") == text.encode("a", add_special_tokens=False)
    assert (text.bos_token_id, text.eos_token_ids) == (None, set())
    text = load_text(metadata=sentencepiece_metadata() | {"tokenizer.ggml.unknown_token_id": 10**6})
    assert text.decode(text.encode("the")) == "the"


def test_sentencepiece_whose_runs_of_spaces_count_as_one() -> None:
    text = load_text(metadata=sentencepiece_metadata() | {"tokenizer.ggml.remove_extra_whitespaces": True})
    assert text.encode("  the   hat ") == text.encode("the hat")


def test_sentencepiece_after_special_tokens(sentencepiece: Text) -> None:
    """Each stretch of text between special tokens has its own space before it, as llama.cpp has it; BOS or not."""
    the = sentencepiece.encode("the", add_special_tokens=False)
    assert sentencepiece.encode("</s>the</s>the", add_special_tokens=False) == [2, *the, 2, *the]
    bare = load_text(metadata=sentencepiece_metadata() | {"tokenizer.ggml.add_bos_token": False})
    assert bare.encode("the") == the


def test_sentencepiece_without_the_prefix_space() -> None:
    text = load_text(metadata=sentencepiece_metadata() | {"tokenizer.ggml.add_space_prefix": False})
    assert text.decode(text.encode(" the")) == " the"
    assert text.encode("the") != text.encode(" the")


def gemma4_metadata(**more: Any) -> dict[str, Any]:
    words = ["\n", "\n\n", "\n\n\n", "▁", "t", "h", "e", "th", "the", "▁the", "a", "▁a", "日", "▁▁", "o", "oo"]
    merges = ["\n \n", "\n \n\n", "\n\n \n", "t h", "th e", "▁ the", "▁ a", "▁ ▁", "o o"]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", '<|"|>']
    values = {
        "model": "gemma4",
        "tokens": [*specials, *(f"<0x{b:02X}>" for b in range(256)), *words],
        "token_type": [3, 3, 3, 2, 3, 3, 4, *[6] * 256, *[1] * len(words)],
        "merges": merges,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | more).items()}


def test_gemma_4_is_its_transformers_class() -> None:
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer

    metadata = gemma4_metadata()
    text, tokens = load_text(metadata=metadata), metadata["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in metadata["tokenizer.ggml.merges"]]
    theirs = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    theirs.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|turn>", "<turn|>")])
    theirs.add_tokens([AddedToken('<|"|>', special=False, normalized=False)])
    turns = "<|turn>the  a\n\n<turn|>\n the"
    for each in (*TEXTS, turns, "  the the\n\n\n\n a", '<|"|>the<|"|>', "▁the", "日本 é😀\noo"):
        ids = text.encode(each, add_special_tokens=False)
        assert ids == theirs.encode(each, add_special_tokens=False)
        assert text.encode(each) == [2, *ids]  # whatever the file says
        assert text.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert text.eos_token_ids == {1, 5}


def test_phi_3_s_special_tokens_take_the_spaces_behind_them_along(sentencepiece: Text) -> None:
    metadata = sentencepiece_metadata() | {"general.architecture": "phi3"}
    text, the = load_text(metadata=metadata), sentencepiece.encode("the", add_special_tokens=False)
    assert text.encode("</s> \n the</s>\n<s>the", add_special_tokens=False) == [2, *the, 2, 1, *the]
    newline = sentencepiece.encode("\nthe", add_special_tokens=False)
    assert text.encode("<s>\nthe", add_special_tokens=False) == [1, *newline]
    assert sentencepiece.encode("</s>\nthe", add_special_tokens=False) == [2, *newline]


def test_what_is_not_supported_is_named() -> None:
    with pytest.raises(TextError, match=r"tokenizer\.ggml\.pre='kimi-k3'.*smollm.*EngineOptions\.tokenizer"):
        load_text(metadata=gpt2_metadata(pre="kimi-k3"))
    with pytest.raises(TextError, match=r"tokenizer\.ggml\.model='bert'"):
        load_text(metadata=gpt2_metadata(model="bert"))
    for broken in ("nope nothing", "nope"):
        with pytest.raises(TextError, match=r"tokenizer\.ggml\.merges"):
            load_text(metadata=gpt2_metadata(merges=[broken]))
    with pytest.raises(TextError, match="scores has 0 entries"):
        load_text(metadata=sentencepiece_metadata() | {"tokenizer.ggml.scores": []})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 5),
        ("pre", ["gpt-2"]),
        ("tokens", 7),
        ("tokens", ["a", 1]),
        ("token_type", [1]),
        ("token_type", ["normal"]),
        ("merges", "a b"),
        ("bos_token_id", "0"),
        ("eot_token_id", [1]),
        ("add_bos_token", "yes"),
    ],
)
def test_a_key_of_another_type_is_named(key: str, value: Any) -> None:
    with pytest.raises(TextError, match=rf"tokenizer\.ggml\.{key}"):
        load_text(metadata=gpt2_metadata(**{key: value}))
    with pytest.raises(TextError, match=r"tokenizer\.chat_templates"):
        load_text(metadata=gpt2_metadata() | {"tokenizer.chat_templates": 1})


def test_a_file_without_a_vocabulary() -> None:
    text = load_text(metadata={"general.architecture": "llama", "tokenizer.ggml.eos_token_id": 2})
    assert not text.has_tokenizer
    assert text.eos_token_ids == {2}


def test_from_the_file_itself(model_path: Path, smollm: Text) -> None:
    text = load_text(model_path)
    assert text.encode("Hello 12") == smollm.encode("Hello 12")
    assert os.fspath(model_path).endswith(".gguf")
    assert oracle(text).get_vocab_size() == 49152
