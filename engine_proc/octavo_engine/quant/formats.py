"""From EngineOptions.quantization to the scheme of each kind of weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.options import Quantization
from octavo_engine.ops import Activations
from octavo_engine.quant.float import FloatScheme
from octavo_engine.quant.rounded import RoundedScheme
from octavo_engine.quant.scheme import Formats, Scheme
from octavo_engine.quant.stored import StoredScheme

if TYPE_CHECKING:
    import torch

__all__ = ["activations_of", "choose_formats", "resolve", "storage"]


def resolve(quantization: str | Quantization | None) -> Quantization | None:
    """The option as a whole, its "auto" decided. None: as stored."""
    if quantization is None:
        return None
    if isinstance(quantization, str):
        quantization = Quantization.parse(quantization)
    if quantization.scheme == "none" or quantization.activations != "auto":
        return quantization
    return Quantization(
        quantization.scheme,
        quantization.group_size,
        quantization.symmetric,
        "int8",
        quantization.lm_head,
        quantization.embeddings,
        quantization.threshold,
    )


def activations_of(quantization: Quantization) -> Activations:
    """What a resolved Quantization multiplies its weights with."""
    if quantization.scheme == "llm_int8":
        return Activations.LLM_INT8
    return Activations.FLOAT if quantization.activations == "float" else Activations.INT8


def storage(quantization: Quantization) -> dict[str, Any]:
    """What of a resolved Quantization decides how weights lie in memory, and so in a file."""
    grouped = quantization.scheme == "int4"
    return {
        "bits": {"int4": 4, "int8": 8, "llm_int8": 8}[quantization.scheme],
        "group_size": quantization.group_size if grouped else 0,
        "symmetric": quantization.symmetric if grouped else True,
        "lm_head": quantization.lm_head,
        "embeddings": quantization.embeddings,
    }


def choose_formats(quantization: Quantization | None, dtype: torch.dtype, *, stored: bool = False) -> Formats:
    """quantization as `resolve` gives it; dtype of what stays in floats; stored: the file may hold 4 or 8 bits."""
    floats = FloatScheme(dtype)
    if quantization is None and stored:
        as_stored = StoredScheme(dtype)
        return Formats(as_stored, as_stored, as_stored)
    if quantization is None or quantization.scheme == "none":
        return Formats(floats, floats)
    activations = activations_of(quantization)
    linear: Scheme
    if quantization.scheme == "int4":
        linear = RoundedScheme(
            "int4",
            bits=4,
            group_size=quantization.group_size,
            symmetric=quantization.symmetric,
            activations=activations,
        )
    else:
        linear = RoundedScheme(quantization.scheme, bits=8, activations=activations, threshold=quantization.threshold)
    rows = RoundedScheme("int8", bits=8)
    heads: dict[bool | str, Scheme] = {
        True: linear,
        False: floats,
        "int8": RoundedScheme("int8", bits=8, activations=activations),
    }
    return Formats(linear, heads[quantization.lm_head], rows if quantization.embeddings else None)
