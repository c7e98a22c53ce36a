"""Paged attention alone, bfloat16 and int8 caches, as a share of its floor: `python -m tests.bench.attention`.

The shape is SmolLM2's (9 query heads on 3). A cell's floor is the larger of bytes / read bandwidth and multiply-adds at
the bfloat16 peak, from probes between the cells, best of several rounds on both sides. Decode walks through so many
layers that pages come from memory, as they do in a model. With one thread all times are CPU times. The call through
Python is in them: 3 us or so.
"""

from __future__ import annotations

import argparse

import torch

from octavo_engine.execution.kv_cache import KVCache
from octavo_engine.ops import KVLayout
from octavo_engine.ops.cpu import CpuOps, load_library
from tests.bench.kernels import PAGE, WORKING_SET, Case, Probe, clock, measure

HEADS, KV_HEADS, DIM = 9, 3, 64
# name: sequences, tokens of each, how many of them are queries, layers walked through
SHAPES = {
    "prefill 512": (1, 512, 512, 1),
    "prefill 2048": (1, 2048, 2048, 1),
    "decode 1 x 200": (1, 200, 1, 400),
    "decode 64 x 192": (64, 192, 1, 30),
}


def case(ops: CpuOps, sequences: int, length: int, queries: int, layers: int, dtype: torch.dtype) -> Case:
    count = -(-length // PAGE)
    cache = KVCache(ops, KVLayout(layers, sequences * count, KV_HEADS, DIM, PAGE, dtype))
    table = torch.randperm(sequences * count, dtype=torch.int32).view(sequences, count)
    rows = torch.randn(sequences * count * PAGE, (HEADS + 2 * KV_HEADS) * DIM).bfloat16()
    slots = torch.arange(len(rows), dtype=torch.int32)
    for keys, values in cache.layers:
        ops.rope_and_cache(rows, keys, values, slots, slots, None, num_heads=HEADS)
    qkv = rows[: sequences * queries].clone()
    starts = torch.arange(sequences + 1, dtype=torch.int32) * queries
    lengths = torch.full((sequences,), length, dtype=torch.int32)

    def run() -> None:
        for keys, values in cache.layers:
            ops.paged_attention(qkv, keys, values, table, starts, lengths, num_heads=HEADS, scale=DIM**-0.5)

    token = 2 * DIM * dtype.itemsize + (8 if dtype == torch.int8 else 0)
    seen = queries * length - queries * (queries - 1) / 2
    flops = 4.0 * sequences * seen * HEADS * DIM
    return Case(float(sequences * length * KV_HEADS * token), flops, layers, run, clock(ops))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    ops = CpuOps(num_threads=options.threads)
    memory = torch.empty(WORKING_SET, dtype=torch.uint8)
    load_library().advise_huge_pages(memory)
    probe = Probe(memory.fill_(1))
    cases = {
        f"{name}, {str(dtype).removeprefix('torch.')}": case(ops, *shape, dtype)
        for name, shape in SHAPES.items()
        for dtype in (torch.bfloat16, torch.int8)
    }
    measure(probe, list(cases.values()), options.rounds)
    print(f"{ops.isa}, {ops.num_threads} threads: {probe.bandwidth / 1e9:.1f} GB/s, {probe.peak / 1e9:.0f} GFLOP/s")
    for name, cell in cases.items():
        rate = f"{cell.bytes / cell.best / 1e9:6.1f} GB/s {cell.flops / cell.best / 1e9:6.0f} GFLOP/s"
        print(f"{name:<26}{cell.best * 1e6:10.1f} us {100 * probe.share(cell):5.0f} % {rate}")


if __name__ == "__main__":
    main()
