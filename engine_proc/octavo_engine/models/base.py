"""What every model is to the rest of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from octavo_engine.layers.config import UnsupportedModel
from octavo_engine.layers.rope import Regimes, Rope, RotationTable

if TYPE_CHECKING:
    from octavo_engine.layers.batch import Batch
    from octavo_engine.layers.blocks import Block, Norm
    from octavo_engine.layers.config import ConfigReader
    from octavo_engine.layers.embedding import Embedding
    from octavo_engine.layers.linear import Linear
    from octavo_engine.layers.loading import Loader

__all__ = ["CausalLM", "Decoder", "ModelBuilder", "ModelConfig", "read_sizes"]


@dataclass(frozen=True)
class ModelConfig:
    """What the engine needs to know of a model besides its forward.

    max_position: tokens a sequence may have by the checkpoint's own config. dtype: of the weights. recordable: forward
    and logits compute by ops alone, as Ops.record asks; else give the runner ops.EagerOps. regimes: where the
    rotation depends on a sequence's length; `positions` in a Batch are rows of the rotation tables.
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
    recordable: bool = True
    regimes: Regimes | None = None


class CausalLM(Protocol):
    """A decoder-only language model, T tokens of S sequences at a time."""

    config: ModelConfig
    tables: Sequence[RotationTable]
    """To be filled before a forward: RotationTable.reach, and own_rows where there are any."""

    def forward(self, batch: Batch) -> Tensor:
        """The residual stream [T, H] float32 after the last layer, before the final norm; writes the KV cache."""
        ...

    def logits(self, rows: Tensor) -> Tensor:
        """Final norm and head: rows [L, H] of `forward`'s result -> [L, V] float32."""
        ...

    def hidden_states(self, rows: Tensor) -> Tensor:
        """The final norm alone: rows [L, H] of `forward`'s result -> [L, E] float32, what the published model gives as
        its last hidden state. E is H but for a few models that project."""
        ...


ModelBuilder = Callable[["ConfigReader", "Loader", "int | None"], CausalLM]
"""builder(config, loader, max_model_len): raises UnsupportedModel, CheckpointMismatch."""


def read_sizes(
    architecture: str,
    config: ConfigReader,
    loader: Loader,
    *,
    kv_heads: int | None = None,
    max_position: int | None = None,
) -> ModelConfig:
    """A ModelConfig of the keys under which families publish the same sizes; head_dim is hidden / heads.

    kv_heads: None: as many as heads. max_position: None: max_position_embeddings or one of its aliases, 2048 if absent.
    """
    hidden = config.integer("hidden_size", "n_embd", "n_embed", "d_model")
    heads = config.integer("num_attention_heads", "n_head", "n_heads")
    if hidden % heads:
        raise UnsupportedModel("num_attention_heads", heads, f"a divisor of the hidden size {hidden}")
    if kv_heads is not None and heads % kv_heads:
        raise UnsupportedModel("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
    if max_position is None:
        max_position = config.integer(
            "max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length", default=2048
        )
    return ModelConfig(
        architecture=architecture,
        num_layers=config.integer("num_hidden_layers", "n_layer", "n_layers"),
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=hidden // heads,
        hidden_size=hidden,
        vocab_size=config.integer("padded_vocab_size", "vocab_size"),
        max_position=max_position,
        dtype=loader.dtype,
    )


class Decoder:
    """Embedding, with positions and a norm where a family has them; blocks; final norm; head. A builder fills it."""

    config: ModelConfig
    embed: Embedding
    embed_positions: Embedding | None = None
    embed_norm: Norm | None = None
    layers: Sequence[Block]
    norm: Norm
    head: Linear
    softcap: float = 0.0  # of the logits
    logit_scale: float = 1.0  # is in the norm
    tables: Sequence[RotationTable] = ()

    def rotation(self, rope: Rope, loader: Loader) -> Tensor:
        """The values of a new RotationTable."""
        table = RotationTable(rope, loader.ops.device, loader.step_tokens)
        self.tables = [*self.tables, table]
        return table.values

    def forward(self, batch: Batch) -> Tensor:
        x = self.embed(batch.token_ids)  # [T, H] float32
        if self.embed_positions is not None:
            self.embed_positions.add_to(x, batch.positions)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        for layer, kv in zip(self.layers, batch.kv, strict=True):
            x = layer(x, batch, kv)
        return x

    def logits(self, rows: Tensor) -> Tensor:
        logits = self.head(self.norm(rows), torch.float32)
        if self.softcap:
            self.head.ops.softcap_(logits, self.softcap)
        return logits

    def hidden_states(self, rows: Tensor) -> Tensor:
        hidden = self.norm(rows).float()
        return hidden if self.logit_scale == 1.0 else hidden / self.logit_scale
