"""Paged decode attention beside FlashInfer and torch's SDPA: `python -m tests.bench.gpu.attention`.

bfloat16, head size 128, pages of 16 in random order. The floor is the bytes of all keys and values over the copy
bandwidth. SDPA reads the same memory as if it lay contiguous, since no paged form of it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo_engine.ops import KVLayout, Ops
from tests.bench.gpu.peers import Peers
from tests.bench.gpu.probes import Machine, free_memory
from tests.bench.gpu.report import main
from tests.bench.gpu.timing import Stopwatch, rotations

__all__ = ["Shape", "attention", "grid"]

PAGE = 16
DIM = 128
HEADS = {"MHA": (32, 32), "GQA-8": (32, 4)}
SEQUENCES = (1, 16, 64, 256)
LENGTHS = (256, 1024, 4096, 32768)
MOST_BYTES = 40 << 30
MOST_LAYERS = 1024  # of the smallest shape, so that they don't stay in a cache
LEAST_LAYERS = 4  # of the largest, where they fit: the first makes the work list, as in a model one of many does
Call = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    name: str
    heads: int
    kv_heads: int
    sequences: int
    length: int
    head_dim: int = DIM

    @property
    def nbytes(self) -> int:
        """Keys and values that one call reads."""
        return 2 * self.sequences * self.length * self.kv_heads * self.head_dim * 2

    @property
    def flops(self) -> int:
        return 4 * self.sequences * self.length * self.heads * self.head_dim


def grid() -> Iterator[Shape]:
    """The most telling first: a run that is cut short has them."""
    order = sorted(SEQUENCES, key=lambda n: n != 64)
    for length in sorted(LENGTHS, key=lambda n: n != 4096):
        for sequences in order:
            for name, (heads, kv_heads) in HEADS.items():
                yield Shape(name, heads, kv_heads, sequences, length)


class _Work:
    """The tensors of one shape, in as many layers as no cache holds."""

    def __init__(self, ops: Ops, shape: Shape, layers: int) -> None:
        device, kind = ops.device, torch.bfloat16
        self.ops, self.shape = ops, shape
        self.pages = -(-shape.length // PAGE)
        count = shape.sequences * self.pages
        layout = KVLayout(layers, count, shape.kv_heads, shape.head_dim, PAGE, kind)
        self.keys, self.values = ops.empty_cache(layout)
        for cache in (self.keys, self.values):
            cache.normal_()
        self.table = torch.randperm(count, device=device, dtype=torch.int32).view(shape.sequences, self.pages)
        self.starts = torch.arange(shape.sequences + 1, device=device, dtype=torch.int32)
        self.lengths = torch.full((shape.sequences,), shape.length, device=device, dtype=torch.int32)
        columns = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.qkv = torch.randn(shape.sequences, columns, device=device).to(kind)
        self.queries = self.qkv[:, : shape.heads * shape.head_dim].reshape(shape.sequences, shape.heads, -1)
        self.scale = shape.head_dim**-0.5

    def octavo(self) -> list[Call]:
        return [partial(self._octavo, *layer) for layer in zip(self.keys, self.values, strict=True)]

    def _octavo(self, keys: Tensor, values: Tensor) -> Tensor:
        return self.ops.paged_attention(
            self.qkv,
            keys,
            values,
            self.table,
            self.starts,
            self.lengths,
            num_heads=self.shape.heads,
            scale=self.scale,
        )

    def sdpa(self) -> list[Call]:
        s = self.shape
        query = self.queries.unsqueeze(2)  # [S, Hq, 1, D]

        def call(keys: Tensor, values: Tensor) -> Tensor:
            grouped = s.heads != s.kv_heads
            return F.scaled_dot_product_attention(query, keys, values, scale=self.scale, enable_gqa=grouped)

        def contiguous(cache: Tensor) -> Tensor:
            return cache.view(s.sequences, s.kv_heads, self.pages * PAGE, s.head_dim)

        return [
            partial(call, contiguous(keys), contiguous(values))
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def flashinfer(self, peers: Peers) -> list[Call]:
        module: Any = peers.get("FlashInfer", "flashinfer")
        s, device = self.shape, self.ops.device
        wrapper = module.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(256 << 20, dtype=torch.uint8, device=device), "HND", use_tensor_cores=s.heads != s.kv_heads
        )
        last = (s.length - 1) % PAGE + 1
        wrapper.plan(
            (self.starts * self.pages).int(),
            self.table.flatten(),
            torch.full((s.sequences,), last, dtype=torch.int32, device=device),
            s.heads,
            s.kv_heads,
            s.head_dim,
            PAGE,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
            sm_scale=self.scale,
        )
        queries = self.queries.contiguous()
        return [
            partial(wrapper.run, queries, (keys, values)) for keys, values in zip(self.keys, self.values, strict=True)
        ]


def attention(
    ops: Ops, clock: Stopwatch, machine: Machine, shapes: Sequence[Shape], peers: Peers
) -> Iterator[dict[str, Any]]:
    """A dict a shape and implementation: seconds, GB/s, share of the copy bandwidth's floor."""
    most = min(MOST_BYTES, int(0.8 * free_memory(ops.device)))
    for shape in shapes:
        if shape.nbytes > most:
            yield {**_named(shape), "left_out": f"{shape.nbytes / 2**30:.0f} GiB of keys and values"}
    todo = [shape for shape in shapes if shape.nbytes <= most]
    # FlashInfer compiles at its first call, a minute or so: it comes when all others have been measured.
    for names in (("octavo", "torch SDPA"), ("FlashInfer",)):
        for shape in todo:
            if all(name in peers.missing for name in names):
                break
            layers = max(rotations(shape.nbytes, MOST_LAYERS), min(LEAST_LAYERS, most // shape.nbytes))
            work = _Work(ops, shape, layers)
            makers = {"octavo": work.octavo, "torch SDPA": work.sdpa, "FlashInfer": partial(work.flashinfer, peers)}
            for name in names:
                if name in peers.missing:
                    continue
                try:
                    measured = clock(makers[name]())
                except Exception as error:
                    if name == "octavo":
                        raise
                    peers.fails(name, error)  # a foreign kernel that can't: the run goes on without it
                    continue
                yield {
                    **_named(shape),
                    "by": name,
                    "microseconds": measured.seconds * 1e6,
                    "graph": measured.graph,
                    "gbytes_per_second": shape.nbytes / measured.seconds / 1e9,
                    "share": machine.floor(shape.nbytes, shape.flops) / measured.seconds,
                }
            del work, makers  # before the next ones are made


def _named(shape: Shape) -> dict[str, Any]:
    return {"bench": "decode attention", "heads": shape.name, "sequences": shape.sequences, "tokens": shape.length}


def run(ops: Ops, clock: Stopwatch, machine: Machine, peers: Peers) -> Iterator[dict[str, Any]]:
    return attention(ops, clock, machine, list(grid()), peers)


if __name__ == "__main__":
    main(run)
