"""Kernels alone, each as a share of what the machine gives in the same run: `python -m tests.bench.kernels`.

A cell is floor / time, where floor = max(bytes / read bandwidth, operations / multiply-add peak) and both probes run
between the kernels, on the same thread pool. Best of several rounds on both sides. Weights cycle through 128 MB so that
they come from memory, as they do in a model. With one thread all times are CPU times, which hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo_engine.ops import PackedLinear
from octavo_engine.ops.cpu import CpuOps, load_library

ROWS = [1, 4, 16, 64, 512]
# name: (N, K) of each linear layer.
LINEAR = {
    "135M qkv": (960, 576),
    "135M o": (576, 576),
    "135M gate_up": (3072, 576),
    "135M down": (576, 1536),
    "135M head": (49152, 576),
    "1.1B qkv": (2560, 2048),
    "1.1B gate_up": (11264, 2048),
    "1.1B down": (2048, 5632),
    "1.1B head": (32000, 2048),
    "7B o": (4096, 4096),
    "7B gate_up": (22016, 4096),
    "7B down": (4096, 11008),
}
# name: (Hq, Hkv, D)
ATTENTION = {"135M": (9, 3, 64), "1.1B": (32, 4, 64), "7B": (32, 32, 128)}
WORKING_SET = 128 << 20
PAGE = 16


@dataclass
class Case:
    """One cell: run() does `repeats` calls that move `bytes` and compute `flops` each."""

    bytes: float
    flops: float
    repeats: int
    run: Callable[[], None]
    clock: Callable[[], float]
    best: float = float("inf")

    def measure(self) -> None:
        start = self.clock()
        self.run()
        self.best = min(self.best, (self.clock() - start) / self.repeats)


@dataclass
class Probe:
    """The best bandwidth [bytes/s] and bfloat16 peak [FLOP/s] seen so far."""

    memory: torch.Tensor
    bandwidth: float = 0.0
    peak: float = 0.0

    def measure(self) -> None:
        library = load_library()
        self.bandwidth = max(self.bandwidth, library.probe_bandwidth(self.memory))
        self.peak = max(self.peak, library.probe_arithmetic(True, 300_000))

    def share(self, case: Case) -> float:
        return max(case.bytes / self.bandwidth, case.flops / self.peak) / case.best


def clock(ops: CpuOps) -> Callable[[], float]:
    return time.thread_time if ops.num_threads == 1 else time.perf_counter


def linear_case(ops: CpuOps, n: int, k: int, rows: int, memory: torch.Tensor) -> Case:
    size = n * k * 2
    copies = max(1, memory.numel() // size)
    weights = [
        PackedLinear(memory[i * size : (i + 1) * size].view(torch.bfloat16).view(n // 32, k // 2, 32, 2), n, k)
        for i in range(copies)
    ]
    x = torch.randn(rows, k).bfloat16()
    flops = 2.0 * rows * n * k
    repeats = copies if rows == 1 else max(1, min(copies, int(4e9 / flops)))

    def run() -> None:
        for i in range(repeats):
            ops.linear(x, weights[i])

    return Case(size, flops, repeats, run, clock(ops))


def attention_case(ops: CpuOps, heads: tuple[int, int, int], sequences: int, context: int, queries: int) -> Case:
    q_heads, kv_heads, dim = heads
    pages = sequences * (context // PAGE)
    keys = torch.randn(pages, kv_heads, dim // 2, PAGE, 2).bfloat16()
    values = torch.randn(pages, kv_heads, PAGE // 2, dim, 2).bfloat16()
    qkv = torch.randn(sequences * queries, (q_heads + 2 * kv_heads) * dim).bfloat16()
    table = torch.randperm(pages, dtype=torch.int32).view(sequences, -1)
    starts = torch.arange(sequences + 1, dtype=torch.int32) * queries
    lens = torch.full((sequences,), context, dtype=torch.int32)
    seen = queries * context - queries * (queries - 1) / 2
    flops = 4.0 * sequences * seen * q_heads * dim
    repeats = max(1, int(2e8 / flops))

    def run() -> None:
        for _ in range(repeats):
            ops.paged_attention(qkv, keys, values, table, starts, lens, num_heads=q_heads, scale=dim**-0.5)

    return Case(4.0 * sequences * context * kv_heads * dim, flops, repeats, run, clock(ops))


def measure(probe: Probe, cases: list[Case], rounds: int) -> None:
    """Interleave the probes with the cases: the machine's speed drifts."""
    for _ in range(rounds):
        probe.measure()
        for case in cases:
            case.measure()


def print_table(title: str, columns: list[str], rows: dict[str, list[Case]], probe: Probe) -> None:
    print(f"\n{title:<16}" + "".join(f"{column:>26}" for column in columns))
    for name, cases in rows.items():
        cells = [
            f"{100 * probe.share(case):4.0f} % {case.bytes / case.best / 1e9:5.1f} GB/s"
            f" {case.flops / case.best / 1e9:5.0f} GF"
            for case in cases
        ]
        print(f"{name:<16}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", default=None)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    ops = CpuOps(isa=options.isa, num_threads=options.threads)
    memory = torch.empty(WORKING_SET + (256 << 20), dtype=torch.uint8)
    load_library().advise_huge_pages(memory)
    memory.view(torch.bfloat16).normal_()
    probe = Probe(memory)
    weights = memory[-memory.data_ptr() % (2 << 20) :][:WORKING_SET]

    linear = {
        name: [linear_case(ops, n, k, m, weights if n * k * 2 <= WORKING_SET else memory) for m in ROWS]
        for name, (n, k) in LINEAR.items()
        if options.only in name
    }
    attention = {
        name: [
            attention_case(ops, heads, 64, 256, 1),
            attention_case(ops, heads, 8, 2048, 1),
            attention_case(ops, heads, 1, 512, 512),
            attention_case(ops, heads, 1, 2048, 512),
        ]
        for name, heads in ATTENTION.items()
        if options.only in name
    }
    measure(probe, [case for row in (*linear.values(), *attention.values()) for case in row], options.rounds)
    print(
        f"{platform.processor() or platform.machine()}, {ops.isa}, {ops.num_threads} threads: "
        f"{probe.bandwidth / 1e9:.1f} GB/s read, {probe.peak / 1e9:.0f} GFLOP/s bfloat16"
    )
    print_table("linear, bf16", [f"{m} rows" for m in ROWS], linear, probe)
    columns = ["64 x 256 decode", "8 x 2048 decode", "prefill 512", "512 after 1536"]
    print_table("attention, bf16", columns, attention, probe)


if __name__ == "__main__":
    main()
