"""W4A16 products on Llama-3.1-8B's shapes beside torch's int4 kernel, Humming and bfloat16: `python -m
tests.bench.gpu.quantized`.

Symmetric groups of 128, bfloat16 activations. The floor is the larger of the packed weight, x and y over the copy
bandwidth, and the multiply-adds over the bfloat16 peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.ops import Activations, Ops, QuantizedWeight
from tests.bench.gpu.peers import Peers
from tests.bench.gpu.probes import Machine
from tests.bench.gpu.report import main
from tests.bench.gpu.timing import Measured, Stopwatch, rotations

__all__ = ["Product", "grid", "quantized"]

GROUP = 128
# name: rows N, columns K
LAYERS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Call = Callable[[], object]


@dataclass(frozen=True)
class Product:
    layer: str
    n: int
    k: int
    rows: int

    def nbytes(self, bits: float) -> float:
        return self.n * self.k * bits / 8 + 2 * self.rows * (self.n + self.k)

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k


BITS = 4 + 16 / GROUP


def grid() -> Iterator[Product]:
    for rows in ROWS:
        for layer, (n, k) in LAYERS.items():
            yield Product(layer, n, k, rows)


class _Weights:
    """One layer's weight, packed by everyone, as often as no cache holds."""

    def __init__(self, ops: Ops, n: int, k: int, peers: Peers) -> None:
        self._ops, self._peers, self._n, self._k = ops, peers, n, k
        self._copies = rotations(int(n * k * BITS / 8))
        self._codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=ops.device)
        self._scales = (torch.rand(n, -(-k // GROUP), device=ops.device) * 0.01 + 0.005).half()

    def packed(self, name: str) -> Callable[[Tensor], list[Call]]:
        """What makes the calls of an implementation for some x; it holds the packed weights."""
        return {
            "octavo": self._octavo,
            "bfloat16": self._bfloat16,
            "torch int4": self._torch,
            "Humming": self._humming,
        }[name]()

    def _octavo(self) -> Callable[[Tensor], list[Call]]:
        weight = QuantizedWeight(self._codes, self._scales, None, 4, GROUP)
        packed = [self._ops.pack_quantized(weight, Activations.FLOAT) for _ in range(self._copies)]
        return lambda x: [partial(self._ops.linear, x, each) for each in packed]

    def _bfloat16(self) -> Callable[[Tensor], list[Call]]:
        floats = [self._floats() for _ in range(rotations(2 * self._n * self._k))]
        return lambda x: [partial(F.linear, x, each) for each in floats]

    def _torch(self) -> Callable[[Tensor], list[Call]]:
        packed = self._pack_torch(self._codes, self._scales, self._copies)
        return lambda x: [partial(torch._weight_int4pack_mm, x, each, GROUP, zeros) for each, zeros in packed]

    def _humming(self) -> Callable[[Tensor], list[Call]]:
        layers = self._make_humming(self._floats(), self._copies)
        return lambda x: [partial(layer, x) for layer in layers]

    def _floats(self) -> Tensor:
        return torch.randn(self._n, self._k, device=self._ops.device).bfloat16()

    @staticmethod
    def _pack_torch(codes: Tensor, scales: Tensor, copies: int) -> list[tuple[Tensor, Tensor]]:
        """torch's own layout: two codes a byte, the even column in the high half, then scales and zeros [K/g, N, 2]."""
        if codes.device.type != "cuda":
            raise RuntimeError("torch's int4 kernel is measured on a CUDA device only")
        pairs = codes[:, 0::2] << 4 | codes[:, 1::2]
        both = torch.stack((scales.t().bfloat16(), torch.zeros_like(scales.t()).bfloat16()), dim=-1).contiguous()
        return [(torch._convert_weight_to_int4pack(pairs, 8), both.clone()) for _ in range(copies)]

    def _make_humming(self, floats: Tensor, copies: int) -> list[Any]:
        module: Any = self._peers.get("Humming", "humming.layer")
        n, k = floats.shape
        layers = []
        for _ in range(copies):
            layer = module.HummingLayer(
                shape_n=n,
                shape_k=k,
                weight_config={"dtype": "int4", "group_size": GROUP},
                torch_dtype=torch.bfloat16,
            ).cuda()
            layer.load_from_unquantized(floats)
            layer.transform()
            layer.prepare_default_kernel_configs()
            layers.append(layer)
        return layers


def quantized(
    ops: Ops, clock: Stopwatch, machine: Machine, products: Sequence[Product], peers: Peers
) -> Iterator[dict[str, Any]]:
    """A dict a product and implementation: seconds, and the share of its own floor; then how many times as fast as
    bfloat16 ours is."""
    seconds: dict[tuple[str, Product], float] = {}
    # Humming compiles at its first call, a minute or so: it comes when all others have been measured.
    for names in (("octavo", "bfloat16", "torch int4"), ("Humming",)):
        for n, k in dict.fromkeys((p.n, p.k) for p in products):
            weights = _Weights(ops, n, k, peers)
            for name in names:
                if name in peers.missing:
                    continue
                try:
                    make = weights.packed(name)
                    for product in (p for p in products if (p.n, p.k) == (n, k)):
                        x = torch.randn(product.rows, k, device=ops.device).bfloat16()
                        measured = clock(make(x))
                        seconds[name, product] = measured.seconds
                        yield _figure(name, product, measured, machine)
                except Exception as error:
                    if name in ("octavo", "bfloat16"):
                        raise
                    peers.fails(name, error)  # a foreign kernel that can't: the run goes on without it
        if "octavo" in names:
            for product in products:
                times = seconds["bfloat16", product] / seconds["octavo", product]
                named = {"bench": "W4A16 against bfloat16", "layer": product.layer, "rows": product.rows}
                yield {**named, "times": times}


def _figure(name: str, product: Product, measured: Measured, machine: Machine) -> dict[str, Any]:
    nbytes = product.nbytes(16 if name == "bfloat16" else BITS)
    return {
        "bench": "W4A16",
        "layer": product.layer,
        "rows": product.rows,
        "by": name,
        "microseconds": measured.seconds * 1e6,
        "graph": measured.graph,
        "gbytes_per_second": nbytes / measured.seconds / 1e9,
        "share": machine.floor(nbytes, product.flops) / measured.seconds,
    }


def run(ops: Ops, clock: Stopwatch, machine: Machine, peers: Peers) -> Iterator[dict[str, Any]]:
    return quantized(ops, clock, machine, list(grid()), peers)


if __name__ == "__main__":
    main(run)
