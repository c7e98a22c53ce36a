"""EngineOptions.quantization: how weights are held."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.checks import choice, flag, number
from octavo.errors import InvalidOption

__all__ = ["Quantization"]

_SCHEMES = {"int4": "int4", "weight_int4": "int4", "int8": "int8", "llm_int8": "llm_int8", "none": "none"}
QUANTIZATIONS = tuple(_SCHEMES)
# What may follow a scheme's name in a short form, besides threshold=X.
_WORDS: dict[str, tuple[str, Any]] = {
    "g32": ("group_size", 32),
    "g64": ("group_size", 64),
    "g128": ("group_size", 128),
    "symmetric": ("symmetric", True),
    "asymmetric": ("symmetric", False),
    "auto": ("activations", "auto"),
    "int8": ("activations", "int8"),
    "float": ("activations", "float"),
    "lm_head": ("lm_head", True),
    "no_lm_head": ("lm_head", False),
    "lm_head_int8": ("lm_head", "int8"),
    "embeddings": ("embeddings", True),
    "no_embeddings": ("embeddings", False),
}


class Quantization(msgspec.Struct, frozen=True, omit_defaults=True):
    """How linear layers are quantised at load; a scheme's name alone takes the defaults.

    scheme: "int4" (also "weight_int4"), group-wise round to nearest; "int8", a scale an output channel; "llm_int8"
    (arXiv 2208.07339); "none", floats, also where the file holds less.
    group_size: of int4, weights a scale: 32, 64 or 128. symmetric: of int4, a scale a group, or a scale and an offset.
    activations: "int8" (W4A8, W8A8), each 32 elements of a row with a scale, "float" (W4A16, W8A16), or "auto": "int8",
    which costs SmolLM2 0.3 to 0.5 % of perplexity and takes half the time of "float" from 16 rows on.
    lm_head: also the projection to the vocabulary, and with it an embedding that is tied to it: True like the other
    layers, "int8" in 8 bits, a scale a row, whatever the scheme. embeddings: also an embedding of its own, in int8, a
    scale a row.
    threshold: of llm_int8: activations at least this large stay in float.

    Never quantised: norms, biases, position embeddings. A linear layer is, whatever it is called (OPT's project_in and
    project_out too).
    """

    scheme: str
    group_size: int = 32
    symmetric: bool = False
    activations: str = "auto"
    lm_head: bool | str = "int8"
    embeddings: bool = False
    threshold: float = 6.0

    def __post_init__(self) -> None:
        choice("quantization", self.scheme, QUANTIZATIONS)
        msgspec.structs.force_setattr(self, "scheme", _SCHEMES[self.scheme])
        if isinstance(self.group_size, bool) or self.group_size not in (32, 64, 128):
            raise InvalidOption("quantization.group_size", self.group_size, "one of 32, 64, 128")
        choice("quantization.activations", self.activations, ("auto", "int8", "float"))
        if self.scheme == "llm_int8" and self.activations == "float":
            raise InvalidOption("quantization.activations", "float", "'auto' or 'int8' with llm_int8")
        for name in ("symmetric", "embeddings"):
            flag(f"quantization.{name}", getattr(self, name))
        if self.lm_head not in (True, False, "int8") or not isinstance(self.lm_head, (bool, str)):
            raise InvalidOption("quantization.lm_head", self.lm_head, "True, False or 'int8'")
        if self.lm_head == "int8" and self.scheme != "int4":
            msgspec.structs.force_setattr(self, "lm_head", True)
        number("quantization.threshold", self.threshold, 0.0, above=True)

    @classmethod
    def parse(cls, text: str) -> Quantization:
        """A scheme's name, or its short form: "int4:g64,symmetric,float", "llm_int8:threshold=5,no_lm_head"."""
        scheme, _, rest = text.partition(":")
        choice("quantization", scheme, QUANTIZATIONS)
        values: dict[str, Any] = {}
        for word in filter(None, rest.replace("-", "_").split(",")):
            if word in _WORDS:
                name, value = _WORDS[word]
            elif word.startswith("threshold="):
                name, value = "threshold", _threshold(text, word)
            else:
                allowed = ", ".join([*_WORDS, "threshold=X"])
                raise InvalidOption("quantization", text, f"a scheme's name, then after a colon any of {allowed}")
            values[name] = value
        return cls(scheme, **values)

    def describe(self) -> str:
        """For logs: "int4 g32 W4A8", "int8 W8A16, lm_head float"."""
        if self.scheme == "none":
            return "float weights"
        bits = 4 if self.scheme == "int4" else 8
        words = [self.scheme]
        if bits == 4:
            words += [f"g{self.group_size}"] + ([] if self.symmetric else ["asymmetric"])
        words.append(f"W{bits}A{16 if self.activations == 'float' else 8}")
        if self.scheme == "llm_int8":
            words.append(f"threshold {self.threshold:g}")
        head = {True: "", False: ", lm_head float", "int8": ", lm_head int8"}
        return " ".join(words) + head[self.lm_head]


def _threshold(text: str, word: str) -> float:
    try:
        return float(word.partition("=")[2])
    except ValueError:
        raise InvalidOption("quantization", text, "a number after threshold=") from None
