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
from tests.bench.gpu.timing import Stopwatch, rotations

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
    """One layer's weight, packed by everyone, as often as no cache holds. Made once for all numbers of rows."""

    def __init__(self, ops: Ops, n: int, k: int, peers: Peers) -> None:
        self.ops, self.peers = ops, peers
        device = ops.device
        copies = rotations(int(n * k * BITS / 8))
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device)
        scales = (torch.rand(n, -(-k // GROUP), device=device) * 0.01 + 0.005).half()
        weight = QuantizedWeight(codes, scales, None, 4, GROUP)
        self._ours = [ops.pack_quantized(weight, Activations.FLOAT) for _ in range(copies)]
        floats = torch.randn(n, k, device=device).bfloat16()
        self._floats = [floats.clone() for _ in range(rotations(floats.nbytes))]
        self._torch = self._made("torch int4", partial(self._pack_torch, codes, scales, copies))
        self._humming = self._made("Humming", partial(self._make_humming, floats, copies))

    def calls(self, x: Tensor) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {
            "octavo": [partial(self.ops.linear, x, weight) for weight in self._ours],
            "bfloat16": [partial(F.linear, x, weight) for weight in self._floats],
        }
        if self._torch:
            found["torch int4"] = [
                partial(torch._weight_int4pack_mm, x, packed, GROUP, zeros) for packed, zeros in self._torch
            ]
        if self._humming:
            found["Humming"] = [partial(layer, x) for layer in self._humming]
        return found

    def _made(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        if name in self.peers.missing:
            return []
        try:
            return make()
        except Exception as error:  # a foreign kernel that can't: the run goes on without it
            self.peers.fails(name, error)
            return []

    @staticmethod
    def _pack_torch(codes: Tensor, scales: Tensor, copies: int) -> list[tuple[Tensor, Tensor]]:
        """torch's own layout: two codes a byte, the even column in the high half, then scales and zeros [K/g, N, 2]."""
        if codes.device.type != "cuda":
            raise RuntimeError("torch's int4 kernel is measured on a CUDA device only")
        pairs = codes[:, 0::2] << 4 | codes[:, 1::2]
        both = torch.stack((scales.t().bfloat16(), torch.zeros_like(scales.t()).bfloat16()), dim=-1).contiguous()
        return [(torch._convert_weight_to_int4pack(pairs, 8), both.clone()) for _ in range(copies)]

    def _make_humming(self, floats: Tensor, copies: int) -> list[Any]:
        module = self.peers.get("Humming", "humming.layer")
        if module is None:
            return []
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
    """A dict a product and implementation: seconds, share of its own floor, and of bfloat16's time."""
    for n, k in dict.fromkeys((p.n, p.k) for p in products):
        weights = _Weights(ops, n, k, peers)
        for product in (p for p in products if (p.n, p.k) == (n, k)):
            x = torch.randn(product.rows, k, device=ops.device).bfloat16()
            found: dict[str, float] = {}
            for name, calls in weights.calls(x).items():
                if name in peers.missing:
                    continue
                try:
                    measured = clock(calls)
                except Exception as error:
                    if name in ("octavo", "bfloat16"):
                        raise
                    peers.fails(name, error)  # a foreign kernel that can't: the run goes on without it
                    continue
                found[name] = measured.seconds
                nbytes = product.nbytes(16 if name == "bfloat16" else BITS)
                yield {
                    "bench": "W4A16",
                    "layer": product.layer,
                    "rows": product.rows,
                    "by": name,
                    "microseconds": measured.seconds * 1e6,
                    "graph": measured.graph,
                    "gbytes_per_second": nbytes / measured.seconds / 1e9,
                    "share": machine.floor(nbytes, product.flops) / measured.seconds,
                }
            yield {
                "bench": "W4A16 against bfloat16",
                "layer": product.layer,
                "rows": product.rows,
                "times": found["bfloat16"] / found["octavo"],
            }


def run(ops: Ops, clock: Stopwatch, machine: Machine, peers: Peers) -> Iterator[dict[str, Any]]:
    return quantized(ops, clock, machine, list(grid()), peers)


if __name__ == "__main__":
    main(run)
