"""Mixtures of experts (arXiv 1701.06538): a router picks a few of many feed-forward blocks for each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.linear import Parallel
from octavo_engine.quant.float import FloatScheme

if TYPE_CHECKING:
    from octavo_engine.layers.linear import Linear
    from octavo_engine.layers.loading import Loader
    from octavo_engine.layers.mlp import MLP
    from octavo_engine.ops import Activation

__all__ = ["MoE", "Routing", "sparse_layers"]


class Routing(NamedTuple):
    """How many experts there are and how many a token gets; renormalise: their shares are made to add up to 1."""

    experts: int
    top_k: int
    renormalise: bool

    @classmethod
    def read(cls, config: ConfigReader, *, experts: int, top_k: int, renormalise: bool) -> Routing:
        """experts, top_k: what the family's configs mean where they lack the keys."""
        routing = cls(
            config.integer("num_experts", "num_local_experts", default=experts),
            config.integer("num_experts_per_tok", default=top_k),
            renormalise,
        )
        if routing.top_k > routing.experts:
            raise UnsupportedModel("num_experts_per_tok", routing.top_k, f"at most the {routing.experts} experts")
        return routing


def sparse_layers(config: ConfigReader) -> list[bool]:
    """Which layers have experts: all but mlp_only_layers and those that decoder_sparse_step passes over."""
    step, dense = config.integer("decoder_sparse_step", default=1), config.get("mlp_only_layers", default=[])
    return [i not in dense and (i + 1) % step == 0 for i in range(config.integer("num_hidden_layers"))]


class MoE:
    """sum over the top_k experts e of p_e W_down,e (act(W_gate,e x) * W_up,e x), p = softmax(W_router x).

    With `shared`, a block that every token goes through, plus sigmoid(W_g x) MLP(x). The router and W_g stay in floats
    whatever the experts are stored in: they are small, and a wrong expert costs more than a rounded one.
    """

    __slots__ = ("act", "down", "router", "routing", "shared", "shared_gate", "up")

    def __init__(
        self,
        loader: Loader,
        hidden: int,
        width: int,
        routing: Routing,
        act: Activation,
        *,
        router: str = "gate",
        names: tuple[str, str, str] = ("experts.{}.gate_proj", "experts.{}.up_proj", "experts.{}.down_proj"),
        shared: MLP | None = None,
        shared_gate: str = "shared_expert_gate",
    ) -> None:
        """names: of an expert's gate, up and down, {} its number."""
        gate, up, down = names
        floats = FloatScheme(loader.dtype)

        def plain(name: str, rows: int) -> Linear:
            return loader.linear(name, rows, hidden, Parallel.REPLICATED, bias=False, scheme=floats)

        self.routing, self.act, self.shared = routing, act, shared
        self.router = plain(router, routing.experts)
        self.up = loader.experts((gate, up), routing.experts, width, hidden, gated=True)
        self.down = loader.experts((down,), routing.experts, hidden, width, gated=False)
        self.shared_gate = None if shared is None else plain(shared_gate, 1)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """residual [T, H] float32 += MoE(x); x [T, H] in the activation type."""
        ops = self.router.ops
        experts, top_k, renormalise = self.routing
        scores = self.router(x, torch.float32)  # [T, experts]
        ops.moe_add_(
            residual, x, scores, self.up, self.down, experts=experts, top_k=top_k, renormalise=renormalise, act=self.act
        )
        if self.shared is not None and self.shared_gate is not None:
            ops.gated_add_(residual, self.shared(x), self.shared_gate(x, torch.float32))
