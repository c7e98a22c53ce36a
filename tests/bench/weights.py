"""How weights are held while they are measured: the option that asks for it, and the bytes it leaves to be read.

A name is "bf16", "stored" (as the file holds them) or what EngineOptions.quantization takes: "int8", "int4:g128,float".
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo import Quantization
from tests.bench.models import MODELS

__all__ = ["Weights", "weights"]

_STORED_BITS = {"smollm2": (5.0, 8.5)}  # Q4_1 and, for the head, Q8_0; groups of 32 with float16 scales


@dataclass(frozen=True)
class Weights:
    """Bits an element, scales and offsets included, of the layers and of the head. integer: int8 activations, so that
    their arithmetic is the int8 dot product's."""

    name: str
    quantization: str | None
    layer_bits: float
    head_bits: float
    integer: bool


def weights(name: str, model: str) -> Weights:
    """Raises octavo.InvalidOption for a name that is no quantization."""
    if name == "bf16":
        return Weights(name, "none", 16, 16, False)
    if name == "stored":
        layer_bits, head_bits = _STORED_BITS.get(model, (16.0, 16.0))
        return Weights(name, None, layer_bits, head_bits, layer_bits < 16)
    asked = Quantization.parse(name)
    bits = 8 + 32 / MODELS[model].hidden  # one float32 scale an output
    if asked.scheme == "int4":
        bits = 4 + 16 / asked.group_size * (1 if asked.symmetric else 2)
    elif asked.scheme == "none":
        bits = 16
    integer = asked.scheme != "none" and asked.activations != "float"
    head_bits = {True: bits, False: 16.0, "int8": 8 + 32 / MODELS[model].hidden}[asked.lm_head]
    return Weights(name, name, bits, head_bits, integer)
