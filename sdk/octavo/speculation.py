"""EngineOptions.speculation: how the engine guesses tokens ahead. Outputs are the same with it and without."""

from __future__ import annotations

import msgspec

from octavo.checks import whole
from octavo.errors import InvalidOption

__all__ = ["Draft", "NGram", "parse"]


class NGram(msgspec.Struct, frozen=True, omit_defaults=True, tag="ngram"):
    """Guess what followed the last tokens when they stood in prompt or output before ("prompt lookup").

    It costs next to nothing and pays where the output repeats its prompt: editing, summarising, extracting.
    num_speculative_tokens: guesses a step, at most; how many are made follows their success and the measured time of a
    step, down to none. prompt_lookup_max, prompt_lookup_min: the number of last tokens that are looked for, the longest
    first. disable_by_batch_size: no guesses in steps of more sequences than this.
    """

    num_speculative_tokens: int = 8
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    disable_by_batch_size: int = 16

    def __post_init__(self) -> None:
        whole("num_speculative_tokens", self.num_speculative_tokens, 1, 64)
        whole("prompt_lookup_max", self.prompt_lookup_max, 1, 64)
        whole("prompt_lookup_min", self.prompt_lookup_min, 1)
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise InvalidOption(
                "prompt_lookup_min", self.prompt_lookup_min, f"at most prompt_lookup_max={self.prompt_lookup_max}"
            )
        whole("disable_by_batch_size", self.disable_by_batch_size, 1)


class Draft(msgspec.Struct, frozen=True, omit_defaults=True, tag="draft"):
    """Guess with a smaller model of the same tokenizer, which runs in the engine with a KV cache of its own.

    model: a folder, a GGUF file or a hub id. quantization: of its weights, as EngineOptions.quantization takes it. The
    other fields are those of NGram.
    """

    model: str
    num_speculative_tokens: int = 5
    disable_by_batch_size: int = 16
    quantization: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InvalidOption("speculation.model", self.model, "a local folder, a GGUF file or a hub id")
        whole("num_speculative_tokens", self.num_speculative_tokens, 1, 64)
        whole("disable_by_batch_size", self.disable_by_batch_size, 1)
        if self.quantization is not None and (not isinstance(self.quantization, str) or not self.quantization):
            raise InvalidOption("speculation.quantization", self.quantization, "None or a scheme's name")


def parse(words: str) -> NGram | Draft:
    """ "ngram", "ngram:FIELD=N,..." or "draft:MODEL". Raises InvalidOption."""
    kind, _, rest = words.partition(":")
    if kind == "draft" and rest:
        return Draft(rest)
    fields = dict(item.partition("=")[::2] for item in rest.split(",") if item)
    if kind != "ngram" or not all(name in NGram.__struct_fields__ and n.isdecimal() for name, n in fields.items()):
        raise InvalidOption("speculation", words, "'ngram', 'ngram:FIELD=N,...' with fields of NGram, or 'draft:MODEL'")
    return NGram(**{name: int(number) for name, number in fields.items()})
