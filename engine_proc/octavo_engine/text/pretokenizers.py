"""How byte-level BPE vocabularies cut text into words before merging, by the name that a GGUF file gives them.

The names and expressions are facts of llama.cpp's src/llama-vocab.cpp and of the tokenizer.json files they came from;
where the two differ, the model was trained with the latter. Kimi's are those of its tokenization_kimi.py, which reads
tiktoken's form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["PRE_OF_ARCHITECTURE", "PRE_TOKENIZERS", "UNKNOWN_RULES", "PreTokenizer"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# DeepSeek's list of the letters that have a case, written out as in its tokenizer.json: those that Unicode's
# normal form C would change as escapes.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥ"
    "ῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(after: str, digits: str, upper: str = _UPPER, lower: str = _LOWER, ends: str = r"\r\n/") -> str:
    """Words end where lower case turns to upper case (tekken, o200k)."""
    word = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{word}{upper}*{lower}+{after}|{word}{upper}+{lower}*{after}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[{ends}]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


class PreTokenizer(NamedTuple):
    """patterns: applied one after the other, matches and what lies between them become words.
    nfc: text is normalised first. ignore_merges: a word that is a token stays whole. by_rank: ids are tiktoken's ranks,
    and the file's merges not all that there are. add_bos: whether a prompt starts with BOS where the file doesn't say.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    by_rank: bool = False
    add_bos: bool = False

    def build(self) -> Any:
        """The `tokenizers` pre-tokenizer."""
        from tokenizers import Regex, pre_tokenizers

        if self.patterns == (_GPT2,):
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        if self.patterns == (r"\p{N}", _GPT2):  # both native: half the time of the expressions
            return pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_gpt2 = PreTokenizer((_GPT2,))
_digits = PreTokenizer((r"\p{N}", _GPT2))
_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_llama3_merged = PreTokenizer((_LLAMA3,))
_qwen2 = PreTokenizer((_QWEN2,), nfc=True)
_gpt4o = PreTokenizer((_cased(f"{_CONTRACTION}?", r"\p{N}{1,3}"),))
_neox = PreTokenizer((_GPT2,), nfc=True)
_bailing = PreTokenizer(
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
)
# Punctuation with the ASCII letters behind it, words with their marks, symbols.
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHINESE_JAPANESE = r"[一-龥぀-ゟ゠-ヿ]+"
# A run of spaces is cut in powers of two, the longest first.
_HALVED = "".join(rf"|\s{{{1 << n}}}(?!\S)" for n in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"
_unnamed = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_bloom = PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",))
_HAN = r"[一-龥ࠀ-一가-퟿]+"

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _unnamed,
    **dict.fromkeys(
        (
            "gpt-2",
            "a.x-4.0",
            "exaone4",
            "gigachat",
            "granite-docling",
            "jais",
            "jina-de",
            "jina-es",
            "jina-v2-de",
            "jina-v2-es",
            "mellum",
            "modern-bert",
            "phi-2",
            "trillion",
        ),
        _gpt2,
    ),
    **dict.fromkeys(("mpt", "olmo"), _neox),
    **dict.fromkeys(("smollm", "codeshell", "exaone", "mellum2", "minerva-7b", "refact", "starcoder"), _digits),
    "command-r": _digits._replace(nfc=True),
    **dict.fromkeys(
        ("llama-bpe", "falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "llama-v3", "llama3", "midm-2.0", "pixtral"),
        _llama3,
    ),
    **dict.fromkeys(("chatglm-bpe", "dbrx", "glm4", "smaug-bpe"), _llama3_merged),
    "jais-2": PreTokenizer((_LLAMA3.replace(r"|\s+(?!\S)|\s+", _HALVED),)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), ignore_merges=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "f2llmv2", "kormo", "megrez"), _qwen2),
    **dict.fromkeys(("stablelm2", "grok-2", "hunyuan", "solar-open"), PreTokenizer((_QWEN2,))),
    "qwen35": PreTokenizer(
        (_QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),), nfc=True
    ),
    "seed-coder": PreTokenizer((_QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+"),)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    # Words go on over single spaces (superwords).
    "exaone-moe": PreTokenizer(
        (
            _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    # All but digits is one word; those in threes from the right.
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "tekken": PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"), _gpt4o),
    # Digits in threes from the right, but where a letter follows; normalised as all of Cohere's.
    **dict.fromkeys(("tiny_aya", "cohere2moe"), PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", *_gpt4o.patterns), nfc=True)),
    "youtu": PreTokenizer(
        (
            r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _cased(f"{_CONTRACTION}?", r"\p{N}"),
        ),
        ignore_merges=True,
    ),
    # Han is cut off first, so its letters are in no word of another script.
    "kimi-k2": PreTokenizer(
        (
            r"\p{Han}+|"
            + _cased(
                f"{_CONTRACTION}?", r"\p{N}{1,3}", f"[{_UPPER}&&[^\\p{{Han}}]]", f"[{_LOWER}&&[^\\p{{Han}}]]", r"\r\n"
            ),
        ),
        ignore_merges=True,
        by_rank=True,
    ),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _bailing),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), _bloom),
    "viking": PreTokenizer((*_bloom.patterns, r"\p{N}")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}+")
    ),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"),
        PreTokenizer((r"\p{N}{1,3}", _CHINESE_JAPANESE, _DEEPSEEK)),
    ),
    "spark2_5": PreTokenizer(
        (
            r"\p{N}{1,3}",
            _CHINESE_JAPANESE,
            _DEEPSEEK.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]"),
            r"\p{N}",
        )
    ),
}

UNKNOWN_RULES = {
    "afmoe": "llama.cpp cuts its digits by a rule that is not the tokenizer.json's expression",
    "sarvam-moe": "how it merges over a line's end is not known",
    "ufakzeka": "whether its text is normalised is not known",
    **dict.fromkeys(
        ("granite-embed-multi-311m", "granite-embed-multi-97m", "jina-v1-en", "jina-v2-code", "roberta-bpe"),
        "it is an encoder's",
    ),
    "whitespace": "it is an encoder's",
}
"""Names that llama.cpp writes and that are refused, and why."""

PRE_OF_ARCHITECTURE = {
    "bloom": "bloom",
    "command-r": "command-r",
    "falcon": "falcon",
    "gpt2": "gpt-2",
    "gptj": "gpt-2",
    "gptneox": "mpt",  # which has its tokenizer
    "mpt": "mpt",
    "olmo": "olmo",
    "phi2": "phi-2",
    "qwen": "qwen2",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2",
    "stablelm": "mpt",  # GPT-NeoX's too; StableLM 2, whose words are cut otherwise, came later than the name
    "starcoder": "starcoder",
    "starcoder2": "starcoder",
}
"""Of files from before the pre-tokenizer was named (May 2024), by general.architecture."""
