"""The tokenizer of a checkpoint folder in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from octavo_engine.text.documented import Evidence
from octavo_engine.text.errors import TextError
from octavo_engine.text.fast import FastBackend, surround
from octavo_engine.text.sentencepiece import CONTROL, USER_DEFINED, Vocabulary, add_pieces, build_bpe, read_model
from octavo_engine.text.slow import SlowBackend, load_slow
from octavo_engine.text.templates import Asked, choose_chat, own_templates
from octavo_engine.text.text import Text
from octavo_engine.text.tiktoken import QWEN_SPECIALS, load_tiktoken
from octavo_engine.text.tokenizer_config import TokenizerConfig, read_json, read_tokenizer_config

__all__ = ["eos_ids", "text_from_folder"]

# A folder with one of these has a tokenizer, though not one that the tokenizers library reads by itself.
_SLOW_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt", "tekken.json")
_SLOW_SUFFIXES = (".tiktoken", ".spm")


def text_from_folder(folder: Path, asked: Asked) -> Text:
    """tokenizer.json, else the vocabulary of an older family, else what transformers can make of the folder's files,
    else a Text without a tokenizer. Raises TextError on a file that can't be read."""
    config = read_tokenizer_config(folder)
    named = config.named()
    backend: FastBackend | SlowBackend
    if (folder / "tokenizer.json").is_file():
        backend = FastBackend(_load(folder / "tokenizer.json", config, named))
    elif (converted := _converted(folder, config, named)) is not None:
        backend = FastBackend(converted)
    elif config.tokenizer_class or config.auto_map or _has_slow_files(folder):
        backend, found = load_slow(folder, config, asked.trust_remote_code)
        named = {**found, **named}
    else:
        return Text(eos_token_ids=eos_ids(folder))
    id_of = partial(_id_of, backend)
    ids = {name: id_of(token) for name, token in named.items()}
    eos = eos_ids(folder, ids.get("eos_token"))
    model = read_json(folder / "config.json")
    names = (*asked.names, folder.resolve().name, str(model.get("_name_or_path") or ""))
    generation = read_json(folder / "generation_config.json")
    evidence = Evidence(str(model.get("model_type")), names, generation, frozenset(eos), id_of, backend.token_of)
    chat = choose_chat(asked.chat_template, _templates(folder, config), named, evidence)
    backend.match_whole(list(chat.tokens))
    return Text(
        backend,
        eos_token_ids=eos | chat.ends,
        bos_token_id=ids.get("bos_token"),
        chat_template=chat.template,
        chat_stop=chat.stop,
    )


# Classes whose vocabulary is SentencePiece's BPE as it stands in the file, and whether they put BOS before a text.
_SENTENCEPIECE_BOS = {
    "BaichuanTokenizer": False,
    "BaiChuanTokenizer": False,
    "CodeLlamaTokenizer": True,
    "GemmaTokenizer": True,
    "InternLM2Tokenizer": True,
    "InternLMTokenizer": True,
    "LLaMATokenizer": True,  # as the first conversions of LLaMA spell it
    "LlamaTokenizer": True,
}
# Where tokenizer_config.json names no class, or there is none; None stands for a folder without config.json.
_CLASS_OF_MODEL = {
    None: "LlamaTokenizer",
    "baichuan": "BaichuanTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "internlm": "InternLMTokenizer",
    "internlm2": "InternLM2Tokenizer",
    "llama": "LlamaTokenizer",
    "minicpm": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "phi3": "LlamaTokenizer",
    "qwen": "QWenTokenizer",
}


def _converted(folder: Path, config: TokenizerConfig, named: dict[str, str]) -> Any:
    """The vocabulary files of older families as a `tokenizers` object; None where there is none that is known here."""
    model_type = read_json(folder / "config.json").get("model_type")
    of_model = _CLASS_OF_MODEL.get(model_type if model_type is None else str(model_type), "")
    kind = (config.tokenizer_class or of_model).removesuffix("Fast")
    if kind == "QWenTokenizer" and (folder / "qwen.tiktoken").is_file():
        named.setdefault("eos_token", QWEN_SPECIALS[0])
        return load_tiktoken(folder / "qwen.tiktoken", QWEN_SPECIALS, "qwen2")
    if kind not in _SENTENCEPIECE_BOS or not (folder / "tokenizer.model").is_file():
        return None
    vocabulary = _configured(read_model(folder / "tokenizer.model"), config, kind)
    tokenizer = build_bpe(vocabulary)
    add_pieces(tokenizer, vocabulary.tokens, vocabulary.types)
    _add_configured(tokenizer, config)
    bos, eos = ("<bos>", "<eos>") if kind == "GemmaTokenizer" else ("<s>", "</s>")
    for name, token in (("unk_token", "<unk>"), ("bos_token", bos), ("eos_token", eos)):
        if token in vocabulary.ids:
            named.setdefault(name, token)
    if config.add_bos_token is None:
        config.add_bos_token = _SENTENCEPIECE_BOS[kind]
    _wrap(tokenizer, config, named)
    return tokenizer


def _configured(vocabulary: Vocabulary, config: TokenizerConfig, kind: str) -> Vocabulary:
    """With the names that tokenizer_config.json gives to pieces that the model file only reserves (InternLM2's
    [UNUSED_TOKEN_145] is <|im_end|>), and with the space before a text where transformers' class has it.

    legacy: true, the default from before there was the key, is SentencePiece's own way; with false, special tokens
    don't begin a text, as for CodeLlama.
    """
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    for number, entry in (config.added_tokens_decoder or {}).items():
        if number < len(tokens) and entry.content not in vocabulary.ids:
            tokens[number], types[number] = entry.content, CONTROL if entry.special else USER_DEFINED
    prefix, once = vocabulary.prefix, kind == "CodeLlamaTokenizer"
    if kind == "LlamaTokenizer":
        once = config.legacy is False
        prefix = prefix if config.add_prefix_space is None else config.add_prefix_space
    return replace(vocabulary, tokens=tokens, types=types, prefix=prefix, once=once)


def _load(path: Path, config: TokenizerConfig, named: Mapping[str, str]) -> Any:
    """tokenizer.json with what tokenizer_config.json adds: tokens, which are special, BOS and EOS around a prompt."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise TextError(f"{path} can't be read: {error}") from error
    _add_configured(tokenizer, config)
    _wrap(tokenizer, config, named)
    return tokenizer


def _add_configured(tokenizer: Any, config: TokenizerConfig) -> None:
    """Tokens that tokenizer_config.json adds, and which are special."""
    from tokenizers import AddedToken

    added = tokenizer.get_added_tokens_decoder()
    for number, entry in sorted((config.added_tokens_decoder or {}).items()):
        # A token is added only where it gets the id that the model was trained with.
        found = tokenizer.token_to_id(entry.content)
        at_end = found is None and number == tokenizer.get_vocab_size(with_added_tokens=True)
        if number not in added and (found == number or at_end):
            tokenizer.add_tokens([AddedToken(entry.content, **entry.flags())])
    special = {entry.content for entry in tokenizer.get_added_tokens_decoder().values() if entry.special}
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in dict.fromkeys(config.special_tokens())
            if token not in special and tokenizer.token_to_id(token) is not None
        ]
    )


def _wrap(tokenizer: Any, config: TokenizerConfig, named: Mapping[str, str]) -> None:
    """add_bos_token and add_eos_token, where written, override the post-processor."""
    if config.add_bos_token is None and config.add_eos_token is None:
        return
    bos = tokenizer.token_to_id(named.get("bos_token", "")) if config.add_bos_token else None
    eos = tokenizer.token_to_id(named.get("eos_token", "")) if config.add_eos_token else None
    if tokenizer.encode("").ids != [token for token in (bos, eos) if token is not None]:
        surround(tokenizer, bos, eos)  # where it is so already, it may do more, like byte offsets


def _templates(folder: Path, config: TokenizerConfig) -> dict[str, str]:
    """By name: chat_template.jinja and those beside it, else the config's, else chat_template.json's."""
    found = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        found["default"] = folder / "chat_template.jinja"
        return {name: _text(path) for name, path in found.items()}
    return own_templates(config.chat_template or read_json(folder / "chat_template.json").get("chat_template"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise TextError(f"{path} is no text in UTF-8: {error}") from error


def eos_ids(folder: Path, tokenizer_eos: int | None = None) -> set[int]:
    """generation_config.json overrides config.json; the tokenizer's own counts besides."""
    for name in ("generation_config.json", "config.json"):
        given = read_json(folder / name).get("eos_token_id")
        if given is None:
            continue
        try:
            ids = set(msgspec.convert(given if isinstance(given, list) else [given], list[int]))
        except msgspec.ValidationError as error:
            raise TextError(f"{folder / name}: eos_token_id={given!r} is neither an id nor a list of them") from error
        break
    else:
        ids = set()
    return ids | ({tokenizer_eos} if tokenizer_eos is not None else set())


def _has_slow_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SLOW_FILES) or any(
        path.suffix in _SLOW_SUFFIXES for path in folder.iterdir()
    )


def _id_of(backend: FastBackend | SlowBackend, token: str) -> int | None:
    if isinstance(backend, FastBackend):
        found: int | None = backend.tokenizer.token_to_id(token)
        return found
    found = backend.tokenizer.convert_tokens_to_ids(token)
    return found if backend.token_of(found) == token else None  # else the unknown token's
