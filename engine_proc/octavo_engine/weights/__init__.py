"""Readers of checkpoints: safetensors, torch's .bin, GGUF, and the hub that they come from."""

from octavo_engine.weights.open import open_source
from octavo_engine.weights.source import Checkpoint, Source, SourceError

__all__ = ["Checkpoint", "Source", "SourceError", "open_source"]
