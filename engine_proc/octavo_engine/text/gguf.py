"""The tokenizer that a GGUF file carries in its metadata (ggml, docs/gguf.md, keys tokenizer.ggml.*)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from octavo_engine.text.documented import Evidence
from octavo_engine.text.errors import TextError
from octavo_engine.text.fast import FastBackend, surround
from octavo_engine.text.pretokenizers import PRE_OF_ARCHITECTURE, PRE_TOKENIZERS, UNKNOWN_RULES
from octavo_engine.text.sentencepiece import NORMAL, UNKNOWN, Vocabulary, add_pieces, build_bpe
from octavo_engine.text.templates import Asked, choose_chat, own_templates, turn_ends
from octavo_engine.text.text import Text
from octavo_engine.text.tiktoken import merges_of_ranks

__all__ = ["gguf_eos_ids", "text_from_gguf"]

log = logging.getLogger("octavo.engine")

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"


def text_from_gguf(metadata: Mapping[str, Any], asked: Asked) -> Text:
    """metadata: key -> Python value, arrays as lists. A file without a vocabulary has no tokenizer; one of an
    unsupported kind raises TextError."""
    _check_types(metadata)
    kind = metadata.get(_KEY + "model")
    tokens = metadata.get(_KEY + "tokens")
    if tokens is None or kind in (None, "none", "no_vocab"):
        return Text(eos_token_ids=gguf_eos_ids(metadata))
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, tokens)
    elif kind == "gemma4":
        tokenizer, add_bos = _spaced(metadata, tokens), True
    else:
        raise TextError(
            f"tokenizer.ggml.model={kind!r}: only 'gpt2', 'llama' and 'gemma4' are supported; name a folder with the "
            "model's tokenizer.json in EngineOptions.tokenizer"
        )
    architecture = str(metadata.get("general.architecture"))
    bare = _NEVER_STRIPPING if kind == "llama" and architecture == "phi3" else None
    add_pieces(tokenizer, tokens, metadata.get(_KEY + "token_type") or [], bare)
    ids = {name: _special(metadata, f"{name}_token_id", len(tokens)) for name in _NAMES}
    # Gemma 4's first files say that there is no BOS, which the model was never without.
    before = ids["bos"] if kind == "gemma4" or metadata.get(_KEY + "add_bos_token", add_bos) else None
    after = ids["eos"] if metadata.get(_KEY + "add_eos_token", False) else None
    surround(tokenizer, before, after)

    backend = FastBackend(tokenizer)
    eos = {i for i in gguf_eos_ids(metadata) if 0 <= i < len(tokens)}
    variables = {f"{_NAMES[name]}_token": tokens[i] for name, i in ids.items() if i is not None}
    names = (*asked.names, str(metadata.get("general.name") or ""))
    evidence = Evidence(architecture, names, {}, frozenset(eos), tokenizer.token_to_id, tokenizer.id_to_token)
    chat = choose_chat(asked.chat_template, _templates(metadata), variables, evidence)
    # The file names one or two of the tokens that end a turn or a document; all of them end an answer.
    ends = turn_ends(tokenizer.token_to_id)
    backend.match_whole([*chat.tokens, *(tokens[end] for end in ends)])
    return Text(
        backend,
        eos_token_ids=eos | chat.ends | ends,
        bos_token_id=ids["bos"],
        chat_template=chat.template,
        chat_stop=chat.stop,
    )


_TYPES: dict[Any, tuple[str, ...]] = {
    str: ("model", "pre"),
    list[str]: ("tokens", "merges"),
    list[int]: ("token_type",),
    list[float]: ("scores",),
    int: tuple(f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")),
    bool | int: ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"),
}


def _check_types(metadata: Mapping[str, Any]) -> None:
    keys = {_KEY + key: kind for kind, names in _TYPES.items() for key in names}
    for key, kind in {**keys, _TEMPLATE: str, f"{_TEMPLATE}s": list[str]}.items():
        if metadata.get(key) is None:
            continue
        try:
            msgspec.convert(metadata[key], kind)
        except msgspec.ValidationError as error:
            raise TextError(f"{key}: {error}") from error
    sizes = {name: len(metadata.get(_KEY + name) or ()) for name in ("tokens", "token_type")}
    if sizes["token_type"] not in (0, sizes["tokens"]):
        raise TextError(f"{_KEY}token_type has {sizes['token_type']} entries for {sizes['tokens']} tokens")


# Phi-3's special tokens take the spaces and newlines behind them along, but for these.
_NEVER_STRIPPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def _special(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    """Files say "none" by leaving the key out, or by an id that no token has."""
    value = metadata.get(_KEY + key)
    return value if value is not None and 0 <= value < size else None


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """By name: one, and in older files more, each under a key of its own."""
    others = {name: metadata.get(f"{_TEMPLATE}.{name}") for name in metadata.get(f"{_TEMPLATE}s") or ()}
    return own_templates({"default": metadata.get(_TEMPLATE), **others})


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Any, bool]:
    """Byte-level BPE (GPT-2): the tokenizer and whether prompts start with BOS by default."""
    from tokenizers import Tokenizer, decoders, normalizers

    name = metadata.get(_KEY + "pre") or _unnamed(str(metadata.get("general.architecture")))
    rules = PRE_TOKENIZERS.get(name)
    if rules is None:
        why = UNKNOWN_RULES.get(str(name), f"only {', '.join(sorted(PRE_TOKENIZERS))} are supported")
        raise TextError(
            f"tokenizer.ggml.pre={name!r}: {why}; name a folder with the model's tokenizer.json in "
            "EngineOptions.tokenizer"
        )
    merges = None
    if rules.by_rank:
        types = metadata.get(_KEY + "token_type") or [NORMAL] * len(tokens)
        merges = merges_of_ranks(
            {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=False)) if kind == NORMAL}
        )
    bpe = _bpe(metadata, tokens, merges, ignore_merges=rules.ignore_merges)
    tokenizer = Tokenizer(bpe)
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rules.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rules.add_bos


def _spaced(metadata: Mapping[str, Any], tokens: list[str]) -> Any:
    """Merges over whole texts, spaces as ▁, bytes for characters that are no token (Gemma 4)."""
    from tokenizers import Tokenizer, decoders, normalizers

    unknown = _special(metadata, "unknown_token_id", len(tokens))
    tokenizer = Tokenizer(
        _bpe(
            metadata,
            tokens,
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _bpe(
    metadata: Mapping[str, Any], tokens: list[str], merges: list[tuple[str, str]] | None = None, **more: Any
) -> Any:
    """merges: the file's own, if not given."""
    from tokenizers import models

    try:
        if merges is None:
            merges = [_merge(line) for line in metadata.get(_KEY + "merges") or []]
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **more)
    except Exception as error:  # the library raises nothing more specific
        raise TextError(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}") from error


def _unnamed(architecture: str) -> str:
    """The pre-tokenizer of files from before they named it."""
    name = PRE_OF_ARCHITECTURE.get(architecture, "default")
    log.warning(
        "the GGUF file does not name its pre-tokenizer (tokenizer.ggml.pre); %r is taken for the architecture %r. "
        "Should the text come out wrong, name a folder with the model's tokenizer.json in EngineOptions.tokenizer",
        name,
        architecture,
    )
    return name


def _merge(line: str) -> tuple[str, str]:
    cut = line.index(" ", 1)  # the left part may be a space itself
    return line[:cut], line[cut + 1 :]


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Any, bool]:
    """SentencePiece BPE with byte fallback (LLaMA 1 and 2)."""
    scores = metadata.get(_KEY + "scores")
    if scores is None or len(scores) != len(tokens):
        raise TextError(
            f"tokenizer.ggml.scores has {len(scores or ())} entries for {len(tokens)} tokens; a 'llama' vocabulary "
            "needs one for each"
        )
    types = metadata.get(_KEY + "token_type") or [NORMAL] * len(tokens)
    unknown = _special(metadata, "unknown_token_id", len(tokens))
    if unknown is None:
        unknown = types.index(UNKNOWN) if UNKNOWN in types else None
    prefix = bool(metadata.get(_KEY + "add_space_prefix", True))
    squeeze = bool(metadata.get(_KEY + "remove_extra_whitespaces", False))
    return build_bpe(Vocabulary(tokens, scores, types, unknown, prefix, squeeze)), True


def gguf_eos_ids(metadata: Mapping[str, Any]) -> set[int]:
    """Ids that the file names as the end of the sequence, of the turn, or of the message."""
    values = (metadata.get(f"{_KEY}{name}_token_id") for name in ("eos", "eot", "eom"))
    return {value for value in values if isinstance(value, int)}
