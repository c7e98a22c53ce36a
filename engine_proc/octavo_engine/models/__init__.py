"""Models: one short file an architecture. See README.md for how to add one."""

from octavo_engine.layers.config import UnsupportedModel
from octavo_engine.layers.loading import CheckpointMismatch
from octavo_engine.models.base import CausalLM, ModelConfig
from octavo_engine.models.registry import ARCHITECTURES, load_model
from octavo_engine.quant.scheme import NotQuantizable

__all__ = [
    "ARCHITECTURES",
    "CausalLM",
    "CheckpointMismatch",
    "ModelConfig",
    "NotQuantizable",
    "UnsupportedModel",
    "load_model",
]
