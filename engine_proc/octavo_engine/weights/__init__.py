"""Readers of checkpoints: safetensors, torch's .bin, GGUF, packed ones, and the hub that they come from."""

from octavo_engine.weights.open import open_source
from octavo_engine.weights.quantized_cache import QuantizedCache
from octavo_engine.weights.source import Checkpoint, Source, SourceError

__all__ = ["Checkpoint", "QuantizedCache", "Source", "SourceError", "open_source"]
