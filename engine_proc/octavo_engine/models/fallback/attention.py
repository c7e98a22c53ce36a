"""transformers' attention, answered by octavo: what an attention function is given there, and what it needs here.

A model whose config says `_attn_implementation = "octavo"` calls `_attend` in each of its layers (transformers'
AttentionInterface). Which cache that is to use is known only to whoever runs the model, so it is put in a context
variable around each run. No mask is made by transformers for an implementation that it has no mask function for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.layers.config import UnsupportedModel

if TYPE_CHECKING:
    from torch import nn

    from octavo_engine.layers.batch import Batch
    from octavo_engine.ops import Ops

__all__ = ["IMPLEMENTATION", "Layer", "PagedAttention", "Probe", "attention", "register"]

IMPLEMENTATION = "octavo"
# What models pass on that changes nothing here: positions are in the rotated keys, masks are causal, dropout is zero.
_HARMLESS = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "deterministic",
    "dropout",
    "is_causal",
    "layer_idx",
    "logits_to_keep",
    "max_length_k",
    "max_length_q",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


class Handler(Protocol):
    """query [1, Hq, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv] -> [1, T, Hq, Dv]."""

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor: ...


_handler: ContextVar[Handler] = ContextVar("octavo_attention")


@contextmanager
def attention(handler: Handler) -> Iterator[None]:
    """Within, the model's attention is `handler`'s."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


def register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)


@dataclass(frozen=True)
class Call:
    """What a layer asks of its attention besides the tensors. window 0: all keys; softcap 0: none."""

    scale: float
    window: int
    softcap: float


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    if attention_mask is not None:
        raise UnsupportedModel(
            "attention_mask", tuple(attention_mask.shape), "attention that is causal, with a sliding window or none"
        )
    if more.get("is_causal") is False:
        raise UnsupportedModel("is_causal", False, "causal attention")
    scale = more.pop("scaling", None)
    call = Call(
        query.shape[-1] ** -0.5 if scale is None else float(scale),
        int(more.pop("sliding_window", None) or 0),
        float(more.pop("softcap", None) or 0.0),
    )
    for name, given in more.items():
        if name not in _HARMLESS and given is not None and given is not False:
            what = f"a tensor of {tuple(given.shape)}" if isinstance(given, Tensor) else given
            raise UnsupportedModel(f"the attention's {name}", what, "scaling, sliding_window, softcap")
    return _handler.get()(module, query, key, value, call), None


@dataclass(frozen=True)
class Layer:
    """One attention of the model, as it was called. head_dim, value_dim: of a key and of a value."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int


class Probe:
    """Notes which layers call their attention, in order, and answers with zeros."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, Layer] = {}

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        found = Layer(query.shape[1], key.shape[1], query.shape[3], value.shape[3], call.window)
        if module in self.layers:
            raise UnsupportedModel(
                "the number of attention calls", f"several of one {type(module).__name__}", "one a layer and token"
            )
        self.layers[module] = found
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


class PagedAttention:
    """Keys and values to the paged cache, attention over it, for the tokens of one Batch.

    order: each attention module's place among the cache's layers. A value narrower than a key (or the other way
    round) is filled up with zeros, which no score and no result sees.
    """

    def __init__(self, ops: Ops, order: Mapping[nn.Module, int], width: int, act_dtype: torch.dtype) -> None:
        self._ops, self._order, self._width, self._act_dtype = ops, order, width, act_dtype

    def over(self, batch: Batch) -> Handler:
        ops, width = self._ops, self._width

        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
            heads, value_dim = query.shape[1], value.shape[3]
            parts = [F.pad(part, (0, width - part.shape[3])) for part in (query, key, value)]
            qkv = torch.cat(parts, dim=1)[0].transpose(0, 1).flatten(1).to(self._act_dtype)  # [T, (Hq + 2 Hkv) D]
            keys, values = batch.kv[self._order[module]]
            ops.rope_and_cache(qkv, keys, values, batch.slots, batch.positions, None, num_heads=heads)
            out = ops.paged_attention(
                qkv,
                keys,
                values,
                batch.page_table,
                batch.query_start,
                batch.seq_lens,
                num_heads=heads,
                scale=call.scale,
                sliding_window=call.window,
                softcap=call.softcap,
            )  # [T, Hq D]
            return out.view(1, -1, heads, width)[..., :value_dim].to(query.dtype)

        return attend
