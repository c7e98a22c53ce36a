"""What adapters add to a layer, on Llama-3.1-8B's shapes, beside torch's products: `python -m tests.bench.gpu.lora`.

bfloat16, 1 or 8 adapters of one rank, the rows dealt out among them. The floor is the larger of the bytes (down and up
of the adapters in use, x, and y read and written in float32) over the copy bandwidth, and the multiply-adds over the
bfloat16 peak; in_cache: those of 16 layers stay in the L2 cache, as a model's do not. torch multiplies each adapter's
rows by themselves, as peft does, here side by side already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo_engine.ops import Ops, PackedLinear
from octavo_engine.ops.lora import LoraTable
from tests.bench.gpu.peers import Peers
from tests.bench.gpu.probes import Machine
from tests.bench.gpu.report import main
from tests.bench.gpu.timing import Stopwatch, rotations, stay_in_cache

__all__ = ["Added", "grid", "lora"]

# name: rows of each stacked weight, columns
LAYERS = {
    "qkv": ((4096, 1024, 1024), 4096),
    "o": ((4096,), 4096),
    "gate_up": ((14336, 14336), 4096),
    "down": ((4096,), 14336),
}
ROWS = (1, 8, 64, 256, 2048)


@dataclass(frozen=True)
class Added:
    layer: str
    sizes: tuple[int, ...]
    k: int
    rank: int
    adapters: int
    rows: int

    @property
    def weights(self) -> int:
        """Elements of an adapter's down and up."""
        return self.rank * (len(self.sizes) * self.k + sum(self.sizes))

    @property
    def nbytes(self) -> int:
        used = min(self.adapters, self.rows)
        return 2 * used * self.weights + self.rows * (2 * self.k + 8 * sum(self.sizes))

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.weights


def grid() -> Iterator[Added]:
    """The most telling first: a run that is cut short has them."""
    for rank in (16, 64):
        for layer, (sizes, k) in LAYERS.items():
            for rows in sorted(ROWS, key=lambda n: n != 64):
                for adapters in (8, 1):
                    if adapters <= rows:
                        yield Added(layer, sizes, k, rank, adapters, rows)


class _Work:
    def __init__(self, ops: Ops, shape: Added) -> None:
        self._ops, self._shape = ops, shape
        self.copies = rotations(shape.nbytes, most=16)
        self._parts = [
            (self._random(shape.rank, shape.k), self._random(shape.rank, size) / shape.rank) for size in shape.sizes
        ]
        self._x = self._random(shape.rows, shape.k)

    def _random(self, *size: int) -> Tensor:
        return torch.randn(*size, device=self._ops.device).bfloat16()

    def octavo(self) -> list[Callable[[], object]]:
        """Rows of all adapters by turns, as a decode step has them."""
        shape, device = self._shape, self._ops.device
        number = torch.arange(shape.rows, dtype=torch.int32, device=device) % shape.adapters
        y = [torch.zeros(shape.rows, sum(shape.sizes), device=device) for _ in range(self.copies)]
        tables = [self._table() for _ in range(self.copies)]
        return [partial(self._ops.lora_add_, each, self._x, number, t) for each, t in zip(y, tables, strict=True)]

    def _table(self) -> LoraTable:
        shape = self._shape
        # Only the layer's shape counts.
        weight = PackedLinear(self._x[:0], sum(shape.sizes), shape.k)
        made = self._ops.lora_table(weight, shape.sizes, adapters=shape.adapters, rank=shape.rank, dtype=torch.bfloat16)
        for adapter in range(shape.adapters):
            for part, (down, up) in enumerate(self._parts):
                made.put(adapter, part, down, up, 1.0)
        return made

    def torch(self) -> list[Callable[[], object]]:
        """Each adapter's rows lie side by side, and y in bfloat16."""
        shape = self._shape
        rows = [range(shape.rows)[i :: shape.adapters] for i in range(shape.adapters)]
        copies = [self._copied() for _ in range(self.copies)]
        y = [self._random(shape.rows, sum(shape.sizes)) for _ in range(self.copies)]

        def add(y: Tensor, adapters: list[list[tuple[Tensor, Tensor]]]) -> None:
            begin = 0
            for some, parts in zip(rows, adapters, strict=True):
                x, column = self._x[begin : begin + len(some)], 0
                for down, up in parts:
                    y[begin : begin + len(some), column : column + up.shape[1]].addmm_(x @ down.T, up)
                    column += up.shape[1]
                begin += len(some)

        return [partial(add, each, adapters) for each, adapters in zip(y, copies, strict=True)]

    def _copied(self) -> list[list[tuple[Tensor, Tensor]]]:
        return [[(down.clone(), up.clone()) for down, up in self._parts] for _ in range(self._shape.adapters)]


def lora(ops: Ops, clock: Stopwatch, machine: Machine, shapes: Sequence[Added]) -> Iterator[dict[str, Any]]:
    """A dict a shape and implementation: seconds, and the share of the floor."""
    for shape in shapes:
        work = _Work(ops, shape)
        in_cache = stay_in_cache(shape.nbytes, work.copies)
        for name, make in (("octavo", work.octavo), ("torch", work.torch)):
            measured = clock(make())
            yield {
                "bench": "adapters",
                "layer": shape.layer,
                "rows": shape.rows,
                "adapters": shape.adapters,
                "rank": shape.rank,
                "by": name,
                "microseconds": measured.seconds * 1e6,
                "graph": measured.graph,
                "gbytes_per_second": shape.nbytes / measured.seconds / 1e9,
                "share": machine.floor(shape.nbytes, shape.flops) / measured.seconds,
                "in_cache": in_cache,
            }


def run(ops: Ops, clock: Stopwatch, machine: Machine, peers: Peers) -> Iterator[dict[str, Any]]:
    return lora(ops, clock, machine, list(grid()))


if __name__ == "__main__":
    main(run)
