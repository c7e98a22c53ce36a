"""The tokenizer that a GGUF file carries in its metadata (ggml, docs/gguf.md, keys tokenizer.ggml.*)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_engine.text.chat import ChatTemplate
from octavo_engine.text.documented import chat_format
from octavo_engine.text.errors import TextError
from octavo_engine.text.fast import FastBackend
from octavo_engine.text.pretokenizers import PRE_TOKENIZERS
from octavo_engine.text.sentencepiece import CONTROL, NORMAL, UNKNOWN, Vocabulary, add_pieces, build_bpe
from octavo_engine.text.text import Text

__all__ = ["gguf_eos_ids", "text_from_gguf"]

_KEY = "tokenizer.ggml."
_MODEL_TYPES = {"gptneox": "gpt_neox"}  # of general.architecture, where they differ
# Ends of a turn, by name: older files give only eos_token_id, which may be the end of the document.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")


def text_from_gguf(metadata: Mapping[str, Any]) -> Text:
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
        raise TextError(f"tokenizer.ggml.model={kind!r}: only 'gpt2' and 'llama' are supported")
    add_pieces(tokenizer, tokens, metadata.get(_KEY + "token_type") or [])
    _set_post_processor(tokenizer, metadata, tokens, add_bos)

    source = metadata.get("tokenizer.chat_template")
    known = None
    if source is None:
        kind = str(metadata.get("general.architecture"))
        family = {"model_type": _MODEL_TYPES.get(kind, kind)}
        known = chat_format(family, {}, tokenizer.token_to_id, tokenizer.id_to_token)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: metadata.get(f"{_KEY}{key}_token_id") for name, key in names.items()}
    variables = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    eos = gguf_eos_ids(metadata)
    if source:
        types = metadata.get(_KEY + "token_type") or []
        ends = {t: tokenizer.token_to_id(t) for t in _TURN_ENDS if t in source}
        eos |= {i for i in ends.values() if i is not None and i < len(types) and types[i] == CONTROL}
    if known is not None:
        source, variables = known.template, {**variables, **known.variables}
        eos |= {i for i in map(tokenizer.token_to_id, known.stops) if i is not None}
    return Text(
        FastBackend(tokenizer),
        eos_token_ids=eos,
        bos_token_id=ids["bos"],
        chat_template=ChatTemplate(source, variables) if source else None,
    )


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Any, bool]:
    """Byte-level BPE (GPT-2): the tokenizer and whether prompts start with BOS by default."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = metadata.get(_KEY + "pre", "default")
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
    unknown = metadata.get(_KEY + "unknown_token_id")
    if unknown is None:
        unknown = types.index(UNKNOWN) if UNKNOWN in types else None
    prefix = bool(metadata.get(_KEY + "add_space_prefix", True))
    return build_bpe(Vocabulary(tokens, scores, types, unknown, prefix)), True


def _set_post_processor(tokenizer: Any, metadata: Mapping[str, Any], tokens: list[str], add_bos: bool) -> None:
    from tokenizers import processors

    bos, eos = metadata.get(_KEY + "bos_token_id"), metadata.get(_KEY + "eos_token_id")
    before = bos if metadata.get(_KEY + "add_bos_token", add_bos) else None
    after = eos if metadata.get(_KEY + "add_eos_token", False) else None
    around = [(tokens[i], i) for i in (before, after) if i is not None]
    if not around:
        return
    head = [f"{tokens[before]}:0"] if before is not None else []
    tail = [f"{tokens[after]}:0"] if after is not None else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*head, "$A:0", *tail], pair=None, special_tokens=list(dict(around).items())
    )


def gguf_eos_ids(metadata: Mapping[str, Any]) -> set[int]:
    """Ids that the file names as the end of the sequence, of the turn, or of the message."""
    values = (metadata.get(f"{_KEY}{name}_token_id") for name in ("eos", "eot", "eom"))
    return {int(value) for value in values if value is not None}
