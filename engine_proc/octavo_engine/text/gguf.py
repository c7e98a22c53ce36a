"""The tokenizer that a GGUF file carries in its metadata (ggml, docs/gguf.md, keys tokenizer.ggml.*)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from octavo_engine.text.documented import Evidence
from octavo_engine.text.errors import TextError
from octavo_engine.text.fast import FastBackend, surround
from octavo_engine.text.pretokenizers import PRE_OF_ARCHITECTURE, PRE_TOKENIZERS
from octavo_engine.text.sentencepiece import NORMAL, UNKNOWN, Vocabulary, add_pieces, build_bpe
from octavo_engine.text.templates import Asked, choose_chat, own_templates, turn_ends
from octavo_engine.text.text import Text

__all__ = ["gguf_eos_ids", "text_from_gguf"]

log = logging.getLogger("octavo.engine")

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"


def text_from_gguf(metadata: Mapping[str, Any], asked: Asked) -> Text:
    """metadata: key -> Python value, arrays as lists. A file without a vocabulary has no tokenizer; one of an
    unsupported kind raises TextError."""
    kind = metadata.get(_KEY + "model")
    tokens = metadata.get(_KEY + "tokens")
    if tokens is None or kind in (None, "none", "no_vocab"):
        return Text(eos_token_ids=gguf_eos_ids(metadata))
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, tokens)
    else:
        raise TextError(
            f"tokenizer.ggml.model={kind!r}: only 'gpt2' and 'llama' are supported; name a folder with the model's "
            "tokenizer.json in EngineOptions.tokenizer"
        )
    add_pieces(tokenizer, tokens, metadata.get(_KEY + "token_type") or [])
    ids = {name: _special(metadata, f"{name}_token_id", len(tokens)) for name in _NAMES}
    before = ids["bos"] if metadata.get(_KEY + "add_bos_token", add_bos) else None
    after = ids["eos"] if metadata.get(_KEY + "add_eos_token", False) else None
    surround(tokenizer, before, after)

    backend = FastBackend(tokenizer)
    eos = {i for i in gguf_eos_ids(metadata) if 0 <= i < len(tokens)}
    variables = {f"{_NAMES[name]}_token": tokens[i] for name, i in ids.items() if i is not None}
    names = (*asked.names, str(metadata.get("general.name") or ""))
    kind = str(metadata.get("general.architecture"))
    evidence = Evidence(kind, names, {}, frozenset(eos), tokenizer.token_to_id, tokenizer.id_to_token)
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
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = metadata.get(_KEY + "pre") or _unnamed(str(metadata.get("general.architecture")))
    rules = PRE_TOKENIZERS.get(name)
    if rules is None:
        raise TextError(
            f"tokenizer.ggml.pre={name!r}: this pre-tokenizer is not supported, only "
            f"{', '.join(sorted(PRE_TOKENIZERS))}; "
            "name a folder with the model's tokenizer.json in EngineOptions.tokenizer"
        )
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    merges = [_merge(line) for line in metadata.get(_KEY + "merges") or []]
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=rules.ignore_merges)
    except Exception as error:  # the library raises nothing more specific
        raise TextError(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}") from error
    tokenizer = Tokenizer(bpe)
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rules.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rules.add_bos


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
    return {int(value) for value in values if value is not None}
