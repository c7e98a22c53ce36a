"""How GGUF files' byte-level vocabularies cut text into words, by the name they give it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from tokenizers import Regex, pre_tokenizers

from octavo_engine.text import TextError, load_text
from octavo_engine.text.pieces import _BYTES
from octavo_engine.text.pretokenizers import PRE_OF_ARCHITECTURE, PRE_TOKENIZERS, UNKNOWN_RULES
from octavo_engine.weights.gguf_architectures import GGUF_ARCHITECTURES
from tests.text.test_gguf import TEXTS, gpt2_metadata
from tests.text.test_older_vocabularies import by_rank

# What llama.cpp's converter writes for the families that are read from GGUF, and for what has their architecture.
WRITTEN = (
    "a.x-4.0 bloom chatglm-bpe command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone "
    "exaone4 falcon falcon3 glm4 gpt-2 gpt-4o gpt3-finnish jais kormo llama-bpe llama3 llama4 megrez mellum midm-2.0 "
    "minerva-7b mpt olmo phi-2 pixtral poro-chat qwen2 refact seed-coder smaug-bpe smollm stablelm2 starcoder tekken "
    "trillion viking bailingmoe2 chameleon cohere2moe exaone-moe hy_v4 jais-2 joyai-llm kimi-k2 laguna llada-moe "
    "minicpm5 spark2_5 superbpe tiny_aya youtu"
)
NASTY = [
    *TEXTS,
    "I'VE we'll DON'T 'S's 'Re 'tİ o'clock rock'n'roll ’s",
    "1 12 123 1234 12345 123456 1234567 1234567890123 3.14159 1,000,000 x12345y 12345_6 0x1F ½12345 ١٢٣٤٥",
    "１２３４５６７ a1b22c333d4444e55555 123456a 1234567é 12345\u0301 v2.0.1234",
    "camelCaseWORDHere XMLHttpRequest iOS McDonald ǅungla ßẞ ﬁne K\u212a",
    "中文abcのカタカナ々〇〆ー한글ㄱㅏ 漢字12345漢字's 日本'll！…「。」、〜 ㄅㄆㄇ，：；“‘’”—",
    "中'S 文a文 Ａ文 文Ａ ⼀⺀丽𠀀𪜀豈 文\u0301a",
    "नमस्ते हिन्दी ภาษาไทย ລາວ ខ្មែរ မြန်မာ العَرَبِيَّة עִבְרִית বাংলা தமிழ் Việt Nguye\u0302\u0303n",
    "😀😃 👨‍👩‍👧‍👦🏳️‍🌈 ❤️‍🔥 a😀b 1️⃣2️⃣ ™© €5 $5.00 <|x|> [INST] #tag @user",
    "x" + " " * 2 + "y" + " " * 3 + "z" + " " * 7 + "w" + " " * 17 + "v" + " " * 600 + "u" + " " * 1025,
    "\t\t  a\t b\r\n\r\n  c \n \n\n d\u00a0\u3000e\u2028f\u2029 \x0b\x0c\x1c\x85g   \n",
    "foo.Bar(baz)//comment\n/// x\n#!/bin/sh -c 'ls -la' && a_b__c\n\tif(!x){return y;}//\n\n",
    "<sentinel:12> IMGIMGABCDZ IMGIMGZ <sentinel:> a    b  c\td",
    "…\u200b\ufeff\u200d\u0301\u20dd ａ\uff9e \U000e0001\U0001f1e9\U0001f1ea \ue000",
]


def words(name: str, text: str) -> list[str]:
    return decoded(PRE_TOKENIZERS[name].build().pre_tokenize_str(text))


def decoded(found: list[tuple[str, Any]]) -> list[str]:
    return [bytes(_BYTES[char] for char in word).decode() for word, _ in found]


def test_all_that_are_written_are_read() -> None:
    assert set(WRITTEN.split()) <= PRE_TOKENIZERS.keys()


LATIN = "I've 12345   x DON'T!\n\ny"
MIXED = "中文abcのカ１２ e\u0301x ЖыЯ/\n //a  \n 한글 ！?foo.Bar  "


@pytest.mark.parametrize(
    ("names", "latin", "mixed"),
    [
        (
            "gpt-2 exaone4 mpt trillion",
            "I|'ve| 12345|  | x| DON|'|T|!|\n|\n|y",
            "中文abcのカ|１２| e|\u0301|x| ЖыЯ|/|\n| //|a|  \n| 한글| ！?|foo|.|Bar|  ",
        ),
        (
            "smollm starcoder command-r exaone",
            "I|'ve| |1|2|3|4|5|  | x| DON|'|T|!|\n|\n|y",
            "中文abcのカ|１|２| e|\u0301|x| ЖыЯ|/|\n| //|a|  \n| 한글| ！?|foo|.|Bar|  ",
        ),
        (
            "llama-bpe glm4 chatglm-bpe dbrx pixtral",
            "I|'ve| |123|45|  | x| DON|'T|!\n\n|y",
            "中文abcのカ|１２| e|\u0301x| ЖыЯ|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "qwen2 stablelm2 megrez",
            "I|'ve| |1|2|3|4|5|  | x| DON|'T|!\n\n|y",
            "中文abcのカ|１|２| e|\u0301x| ЖыЯ|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "qwen35",
            "I|'ve| |1|2|3|4|5|  | x| DON|'T|!\n\n|y",
            "中文abcのカ|１|２| e\u0301x| ЖыЯ|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "tekken",
            "I|'ve| |1|2|3|4|5|  | x| DON|'T|!\n\n|y",
            "中文abcのカ|１|２| e\u0301x| Жы|Я|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "gpt-4o llama4",
            "I've| |123|45|  | x| DON'T|!\n\n|y",
            "中文abcのカ|１２| e\u0301x| Жы|Я|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "seed-coder",
            "I|'ve| |1|2|3|4|5|  | x| DON|'T|!|\n\n|y",
            "中文abcのカ|１|２| e|\u0301x| ЖыЯ|/|\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "default",
            "I|'|ve| |123|45|  | x| DON|'|T|!|\n|\n|y",
            "中文abcのカ|１２| e|\u0301|x| ЖыЯ|/|\n |//|a|  \n| 한글| |！?|foo|.|Bar|  ",
        ),
        (
            "falcon",
            "I|'|ve| |123|45|  | x| DON|'|T|!|\n|\n|y",
            "中文abcのカ|１２| e|\u0301|x| ЖыЯ|/|\n |//|a|  \n| 한글| |！?|foo|.|Bar|  ",
        ),
        (
            "bloom poro-chat gpt3-finnish",
            "I've| 12345|  | x| DON'T|!\n\n|y",
            "中文abcのカ１２| e\u0301x| ЖыЯ/|\n| //a|  \n| 한글| ！|?|foo|.|Bar|  ",
        ),
        (
            "viking",
            "I've| |1|2|3|4|5|  | x| DON'T|!\n\n|y",
            "中文abcのカ|１|２| e\u0301x| ЖыЯ/|\n| //a|  \n| 한글| ！|?|foo|.|Bar|  ",
        ),
        (
            "deepseek-coder",
            "I|'|ve| |1|2|3|4|5|  | x| DON|'|T|!|\n|\n|y",
            "中文|abc|のカ|１|２| e|\u0301|x| ЖыЯ|/|\n| //|a|  |\n| |한글| ！?|foo|.|Bar|  ",
        ),
        (
            "deepseek-llm",
            "I|'|ve| |12345|  | x| DON|'|T|!|\n|\n|y",
            "中文|abc|のカ|１２| e|\u0301|x| ЖыЯ|/|\n| //|a|  |\n| |한글| ！?|foo|.|Bar|  ",
        ),
        (
            "jais-2",
            "I|'ve| |123|45|  | x| DON|'T|!\n\n|y",
            "中文abcのカ|１２| e|\u0301x| ЖыЯ|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "laguna",
            "I|'ve| |1|2|3|4|5|  | x| DON|'T|!|\n\n|y",
            "中文abcのカ|１|２| e|\u0301x| ЖыЯ|/|\n| //|a|  |\n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "exaone-moe",
            "I|'ve| |1|2|3|4|5|  | x DON|'T|!\n|\n|y",
            "中文abcのカ|１|２| e\u0301x ЖыЯ|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "superbpe",
            "I've |12|345|   x DON'T!\n\ny",
            "中文abcのカ|１２| e\u0301x ЖыЯ/\n //a  \n 한글 ！?foo.Bar  ",
        ),
        (
            "tiny_aya cohere2moe",
            "I've| |12|345|  | x| DON'T|!\n\n|y",
            "中文abcのカ|１２| e\u0301x| Жы|Я|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "kimi-k2",
            "I've| |123|45|  | x| DON'T|!\n\n|y",
            "中文|abcのカ|１２| e\u0301x| Жы|Я|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
        (
            "youtu",
            "I've| |1|2|3|4|5|  | x| DON'T|!\n\n|y",
            "中文|abc|のカ|１|２| e\u0301x| Жы|Я|/\n| //|a|  \n| |한글| |！|?foo|.Bar|  ",
        ),
        (
            "chameleon",
            "I|'|ve| |1|2|3|4|5|  | x| DON|'|T|!|\n|\n|y",
            "中文abcのカ|１|２| e|\u0301|x| ЖыЯ|/|\n| |/|/|a|  |\n| 한글| |！|?|foo|.|Bar|  ",
        ),
        (
            "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
            "I|'ve| |123|45|  | x| DON|'T|!\n\n|y",
            "中文|abc|のカ|１２| e\u0301x| ЖыЯ|/\n| //|a|  \n| 한글| ！?|foo|.Bar|  ",
        ),
    ],
)
def test_words(names: str, latin: str, mixed: str) -> None:
    for name in names.split():
        assert "|".join(words(name, LATIN)) == latin
        assert "|".join(words(name, MIXED)) == mixed


def split_by_all(patterns: Sequence[str], text: str) -> list[str]:
    parts = [text] if text else []
    for pattern in patterns:
        parts = [piece for part in parts for piece in split_by(pattern, part)]
    return parts


def split_by(pattern: str, text: str) -> list[str]:
    """What the expression finds, and what lies between."""
    cuts = {0, len(text), *(at for found in regex.finditer(pattern, text, regex.V1) for at in found.span())}
    return [text[a:b] for a, b in pairwise(sorted(cuts))]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_it_is_what_its_expressions_say(name: str) -> None:
    for text in (*NASTY, LATIN, MIXED, "\r\n 'Re 'rE\t\t x\n \n"):
        assert words(name, text) == split_by_all(PRE_TOKENIZERS[name].patterns, text)


# As published: Kimi's in tokenization_kimi.py, the others in tokenizer.json.
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "kimi-k2": [
        r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-4o": [_O200K],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", _O200K],
    "exaone-moe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "jais-2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
        r"|\s{1,2}(?!\S)|\s{1}"
    ],
    "minicpm5": [
        r"\p{N}{1,3}",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ],
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_it_is_what_was_published(name: str) -> None:
    for text in NASTY:
        assert words(name, text) == split_by_all(PUBLISHED[name], text)


def test_superbpe_takes_digits_in_threes_from_the_right() -> None:
    for text in NASTY:
        found = [word for run in regex.split(r"(\p{N}+)", text) for word in _thirds(run)]
        assert words("superbpe", text) == [word for word in found if word]


def _thirds(run: str) -> list[str]:
    """From the right; digits alone are counted, so another number's sign begins the count anew."""
    if not regex.fullmatch(r"\p{N}+", run):
        return [run]
    cuts = [at for at in range(len(run)) if (left := regex.match(r"\d+", run[at:])) and len(left[0]) % 3 == 0]
    return [run[a:b] for a, b in pairwise(sorted({0, *cuts, len(run)}))]


def test_chameleon_is_made_of_the_library_s_parts() -> None:
    """As its tokenizer.json has it."""
    parts = [
        pre_tokenizers.Split(Regex("<sentinel:[0-9]+>"), "isolated"),
        pre_tokenizers.Split(Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), "isolated"),
        pre_tokenizers.Split(Regex("([\\t\\n]|    |  )"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation("isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    theirs = pre_tokenizers.Sequence(parts)
    for text in NASTY:
        assert PRE_TOKENIZERS["chameleon"].build().pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_normalised_as_the_library_s_own_classes_do() -> None:
    """transformers' classes of these families, built without files."""
    from transformers import CohereTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer

    classes = {"command-r": CohereTokenizer, "mpt": GPTNeoXTokenizer, "olmo": GPTNeoXTokenizer, "qwen2": Qwen2Tokenizer}
    for name, kind in classes.items():
        theirs = kind(vocab={"a": 0}, merges=[]).backend_tokenizer
        assert type(theirs.normalizer).__name__ == "NFC"
        assert PRE_TOKENIZERS[name].nfc
        for text in NASTY:
            assert words(name, text) == decoded(theirs.pre_tokenizer.pre_tokenize_str(text))


def test_a_name_that_is_refused_is_refused_with_a_reason() -> None:
    assert not UNKNOWN_RULES.keys() & PRE_TOKENIZERS.keys()
    for name, why in UNKNOWN_RULES.items():
        with pytest.raises(TextError, match=rf"{name}'.*{why}.*EngineOptions\.tokenizer"):
            load_text(metadata=gpt2_metadata(pre=name))


def test_kimi_s_words_are_joined_by_rank_as_in_tiktoken() -> None:
    """From any two parts that make a token, though the file lists one way for each."""
    base = gpt2_metadata(pre="kimi-k2")
    letters = [token for token in base["tokenizer.ggml.tokens"] if len(token) == 1]
    tokens = [*letters, "bc", "ab", "abc", "xa", "bcx", "[EOS]"]
    base |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": ["b c", "a b", "ab c", "x a", "bc x"],
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    text = load_text(metadata=base)
    ranks = {token.encode(): i for i, token in enumerate(tokens[:-1]) if token.isascii()}
    for word in ("abc", "abcabc", "zabcz", "xabcx", "bcxa", "cbabcab"):
        assert text.encode(word) == by_rank(ranks, word.encode())
    assert text.encode("abc[EOS]") == [tokens.index("abc"), len(tokens) - 1]


def test_bos_where_the_file_does_not_say() -> None:
    with_bos = {name for name in PRE_TOKENIZERS if load_text(metadata=gpt2_metadata(pre=name)).encode("a")[0] == 0}
    llama3 = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"
    assert with_bos == {*llama3.split(), "tekken", "chameleon"}


def test_a_file_that_names_none_gets_its_family_s_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def ids(architecture: str, **more: Any) -> list[int]:
        metadata = gpt2_metadata(pre=None) | {"general.architecture": architecture} | more
        return load_text(metadata=metadata).encode("I've 12345")

    with caplog.at_level(logging.WARNING, logger="octavo.engine"):
        told = {name: load_text(metadata=gpt2_metadata(pre=name)).encode("I've 12345") for name in PRE_TOKENIZERS}
        assert not caplog.text
        for architecture, name in PRE_OF_ARCHITECTURE.items():
            assert ids(architecture) == told[name]
            assert f"'{name}' is taken for the architecture '{architecture}'" in caplog.text
        assert ids("llama") == told["default"]
        assert "'default' is taken for the architecture 'llama'" in caplog.text
    assert PRE_OF_ARCHITECTURE.keys() <= GGUF_ARCHITECTURES.keys()
