"""Mixtures of experts: bytes of the experts that a step touches a second, beside the machine's own read bandwidth.

    python -m tests.bench.moe [--rows 1,8,32] [--schemes none,int8,int4]

The probe runs after each case. While few rows come to an expert, memory is what bounds it: each expert that a step
touches is read once. From about 13 rows an expert in bfloat16, 7 in int4, arithmetic does.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from octavo_engine.layers.loading import Loader
from octavo_engine.layers.moe import MoE, Routing
from octavo_engine.models.packed import quantization_of
from octavo_engine.ops import Activation, load_ops
from octavo_engine.quant.formats import choose_formats
from tests.bench.probe import Probe

# name: experts, experts a token, hidden, width of an expert
SHAPES = {
    "Mixtral, a quarter": (8, 2, 2048, 3584),
    "OLMoE": (64, 8, 2048, 1024),
    "Qwen1.5-MoE": (60, 4, 2048, 1408),
}


class Weights:
    """A checkpoint of one layer of experts, each tensor made when it is read."""

    def __init__(self, experts: int, hidden: int, width: int) -> None:
        self.shapes = {"gate.weight": (experts, hidden)}
        for expert in range(experts):
            for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                self.shapes[f"experts.{expert}.{part}_proj.weight"] = shape

    def names(self) -> list[str]:
        return list(self.shapes)

    def get(self, name: str) -> Tensor:
        rows, columns = self.shapes[name]
        return (torch.randn(1, columns) * 0.02).expand(rows, columns).bfloat16()

    def nbytes(self, name: str) -> int:
        rows, columns = self.shapes[name]
        return 2 * rows * columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--schemes", default="none,int8,int4")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ops = load_ops("cpu", num_threads=arguments.threads)
    with Probe() as probe:
        for name, (experts, top_k, hidden, width) in SHAPES.items():
            weights = Weights(experts, hidden, width)
            for short in arguments.schemes.split(","):
                formats = choose_formats(quantization_of(weights, short), torch.bfloat16)
                loader = Loader(ops, weights, torch.bfloat16, formats)
                moe = MoE(loader, hidden, width, Routing(experts, top_k, True), Activation.SILU)
                for rows in map(int, arguments.rows.split(",")):
                    seconds, touched = timed(moe, rows, hidden)
                    size = sum(each.data.nbytes for each in (moe.up, moe.down)) * touched / experts
                    speed, limit = size / seconds / 1e9, probe().bandwidth / 1e9
                    print(
                        f"{name:20} {short:5} {rows:3} rows, {touched:2} experts: {speed:5.1f} GB/s of {limit:5.1f}",
                        flush=True,
                    )


def timed(moe: MoE, rows: int, hidden: int) -> tuple[float, int]:
    """Seconds of the best of many calls, and how many experts each touches."""
    x, residual = torch.randn(rows, hidden).bfloat16(), torch.zeros(rows, hidden)
    scores = torch.randn(rows, moe.routing.experts)
    best = float("inf")
    for _ in range(16):
        start = time.perf_counter()
        moe.router.ops.moe_add_(residual, x, scores, moe.up, moe.down, act=moe.act, **moe.routing._asdict())
        best = min(best, time.perf_counter() - start)
    chosen = set(scores.topk(moe.routing.top_k).indices.flatten().tolist())
    return best, len(chosen)


if __name__ == "__main__":
    main()
