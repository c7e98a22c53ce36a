"""Which checkpoint without a chat template gets which documented format.

Base models share their family's vocabulary, code and config, and answer nothing sensible in a chat's format. So a
checkpoint gets one only where its family is known and something of its own marks it as the variant that was trained on
chats: a token that no base model has, what its generation_config.json says, or, last, the name it is published under.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Evidence", "documented_format"]


class Evidence(NamedTuple):
    """What is known of a checkpoint. model_type: config.json's, or GGUF's architecture. names: hub id, path, and what
    its files call it. generation: generation_config.json. eos: ids that end a sequence. id_of, token_of: the
    vocabulary's."""

    model_type: str
    names: Sequence[str]
    generation: Mapping[str, Any]
    eos: frozenset[int]
    id_of: Callable[[str], int | None]
    token_of: Callable[[int], str | None]


class _Known(NamedTuple):
    """families: of one of these model types. tokens: all of them are in no base model's vocabulary. says: of the
    generation config and the eos ids. name: an expression for the beginning of the name, in lower case, words joined
    by hyphens."""

    format: str
    families: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    says: Callable[[Evidence], bool] | None = None
    name: str = ""


def _stops_at(token: str) -> Callable[[Evidence], bool]:
    return lambda evidence: evidence.id_of(token) in evidence.eos


# GGUF files call InternLM, Aquila and Mistral by llama's name.
_KNOWN = (
    _Known("alpaca", ("llama",), name=r"alpaca-(native|\d+b)"),
    _Known("aquila-chat", ("aquila", "llama"), name=r"aquilachat-\d+b"),
    _Known("aquila2-16k", ("aquila", "llama"), name=r"aquilachat2-(7|34)b-16k"),
    _Known("aquila2", ("aquila", "llama"), name=r"aquilachat2-7b"),
    _Known("aquila2-34b", ("aquila", "llama"), name=r"aquilachat2-34b"),
    _Known(
        "baichuan",
        ("baichuan",),
        says=lambda evidence: {"user_token_id", "assistant_token_id"} <= evidence.generation.keys(),
        name=r"baichuan2?-\d+b-chat",
    ),
    _Known("codellama-70b", ("llama",), name=r"codellama-70b-instruct"),
    _Known("dolly", ("gpt_neox", "gptneox"), ("### Instruction:", "### Response:", "### End"), name=r"dolly-v2-\d+b"),
    _Known("falcon-chat", ("falcon",), name=r"falcon-180b-chat"),
    _Known("falcon-instruct", ("falcon", "refinedweb", "refinedwebmodel"), name=r"falcon-(7|40)b-instruct"),
    _Known("gemma", ("gemma",), name=r"gemma-(1\.1-)?[27]b-it"),
    _Known("internlm", ("internlm", "llama"), says=_stops_at("<eoa>"), name=r"internlm-chat-\d+b"),
    _Known("llama2", ("llama",), name=r"(meta-)?llama-?2-\d+b-chat|codellama-(7|13|34)b-instruct"),
    _Known(
        "mistral",
        ("mistral", "mixtral", "llama"),
        name=r"mistral-7b-instruct-v0\.[12](?!\d)|mixtral-8x7b-instruct-v0\.1",
    ),
    _Known(
        "mistral-v3",
        ("mistral", "mixtral", "llama"),
        name=r"mistral-7b-instruct-v0\.3(?!\d)|mixtral-8x22b-instruct-v0\.1|codestral-22b-v0\.1",
    ),
    _Known("mpt-30b-instruct", ("mpt",), name=r"mpt-30b-instruct"),
    _Known("mpt-instruct", ("mpt",), name=r"mpt-7b(-8k)?-instruct"),
    _Known("chatml", ("mpt",), ("<|im_start|>", "<|im_end|>"), name=r"mpt-\d+b(-8k)?-chat"),
    # Phi-2 has one variant, and finetunes that are called after it.
    _Known(
        "phi-2", ("phi", "phi-msft", "phi2"), name=r"phi-?2($|[.-](q\d|f16|f32|fp16|bf16|gptq|awq|gguf|int\d|hf\b))"
    ),
    _Known(
        "qwen",
        ("qwen",),
        says=lambda evidence: evidence.generation.get("chat_format") == "chatml",
        name=r"qwen-?[\d.-]+b-chat",
    ),
    _Known("stablelm-tuned", ("gpt_neox", "gptneox"), ("<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>")),
    _Known("starchat", ("gpt_bigcode", "starcoder"), ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    _Known("vicuna-v0", ("llama",), name=r"vicuna-\d+b-(delta-)?v0"),
    _Known("vicuna", ("llama",), name=r"vicuna-\d+b"),
)


def documented_format(evidence: Evidence) -> tuple[str, str] | None:
    """The name of the format, and by what it was told; None for a base model and for what is not known here."""
    names = [name for given in evidence.names for name in _spellings(given)]
    for known in _KNOWN:
        if evidence.model_type.lower() not in known.families:
            continue
        if known.tokens and all(evidence.id_of(token) is not None for token in known.tokens):
            return known.format, f"its tokens {', '.join(known.tokens)}"
        if known.says is not None and known.says(evidence):
            return known.format, "its generation config"
        for name in names:
            if known.name and re.match(known.name, name):
                return known.format, f"its name {name}"
    return None


def _spellings(name: str) -> list[str]:
    """The last part of a path or hub id, and that without an owner put before it (owner_name)."""
    last = re.split(r"[/\\]", name.rstrip("/\\").lower())[-1]
    return [re.sub(r"[\s_]+", "-", each) for each in dict.fromkeys((last, last.partition("_")[2])) if each]
