"""What every model is to the rest of the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo_engine.layers.batch import Batch
    from octavo_engine.layers.config import ConfigReader
    from octavo_engine.layers.loading import Loader

__all__ = ["CausalLM", "ModelBuilder", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """What the engine needs to know of a model besides its forward.

    max_position: tokens a sequence may have by the checkpoint's own config. dtype: of the weights.
    """

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_position: int
    dtype: torch.dtype
    sliding_window: int = 0


class CausalLM(Protocol):
    """A decoder-only language model, T tokens of S sequences at a time."""

    config: ModelConfig

    def forward(self, batch: Batch) -> Tensor:
        """The residual stream [T, H] float32 after the last layer, before the final norm; writes the KV cache."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """Final norm and head: rows [L, H] of `forward`'s result -> [L, V] float32."""
        ...


ModelBuilder = Callable[["ConfigReader", "Loader", "int | None"], CausalLM]
"""builder(config, loader, max_model_len): raises UnsupportedModel, CheckpointMismatch."""
