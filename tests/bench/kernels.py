"""Kernels alone, each as a share of what the machine gives in the same run: `python -m tests.bench.kernels`.

A cell is floor / time, where floor = max(bytes / read bandwidth, operations / multiply-add peak) and both probes run
between the kernels, on the same thread pool. Best of several rounds on both sides. Weights cycle through 128 MB so that
they come from memory, as they do in a model. Products with int8 activations are held to the peak of int8 multiply-adds
(vpdpbusd), all others to that of bfloat16. With one thread all times are CPU times, which hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo_engine.ops import Activations, PackedLinear, QuantizedLinear
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
GATED = ("gate_up",)
# name: bits, group size, symmetric, activations.
QUANTIZED = {
    "int4 g32": (4, 32, True, Activations.INT8),
    "int4 g32 asym": (4, 32, False, Activations.INT8),
    "int4 g128": (4, 128, True, Activations.INT8),
    "int4 g128 asym": (4, 128, False, Activations.INT8),
    "int8": (8, 0, True, Activations.INT8),
    "W4A16 g32": (4, 32, True, Activations.FLOAT),
    "W4A16 g32 asym": (4, 32, False, Activations.FLOAT),
    "W4A16 g128": (4, 128, True, Activations.FLOAT),
    "W8A16": (8, 0, True, Activations.FLOAT),
    "W8A16 g32": (8, 32, True, Activations.FLOAT),
}
FORMATS = ["bf16", "attention", *QUANTIZED]
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
    int8: bool = False
    best: float = float("inf")

    def measure(self) -> None:
        start = self.clock()
        self.run()
        self.best = min(self.best, (self.clock() - start) / self.repeats)


@dataclass
class Probe:
    """The best bandwidth [bytes/s] and peaks of bfloat16 and int8 [operations/s] seen so far."""

    memory: torch.Tensor
    bandwidth: float = 0.0
    peak: float = 0.0
    int8_peak: float = 0.0

    def measure(self) -> None:
        library = load_library()
        self.bandwidth = max(self.bandwidth, library.probe_bandwidth(self.memory))
        self.peak = max(self.peak, library.probe_arithmetic(True, 300_000))
        self.int8_peak = max(self.int8_peak, library.probe_arithmetic_int8(300_000))

    def share(self, case: Case) -> float:
        peak = self.int8_peak if case.int8 else self.peak
        return max(case.bytes / self.bandwidth, case.flops / peak) / case.best


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


def quantized_case(ops: CpuOps, name: str, shape: str, rows: int, memory: torch.Tensor) -> Case:
    bits, group_size, symmetric, activations = QUANTIZED[name]
    n, k = LINEAR[shape]
    gated = shape.endswith(GATED)
    panels, panel = n // 32, int(load_library().quantized_panel_bytes(n, k, bits, group_size, symmetric))
    size = panels * panel
    copies = max(1, memory.numel() // size)
    weights = [
        QuantizedLinear(
            memory[i * size : (i + 1) * size].view(panels, panel), n, k, bits, group_size, symmetric, activations, gated
        )
        for i in range(copies)
    ]
    x = torch.randn(rows, k).bfloat16()
    flops = 2.0 * rows * n * k
    repeats = copies if rows == 1 else max(1, min(copies, int(8e9 / flops)))

    def run() -> None:
        for i in range(repeats):
            ops.linear(x, weights[i])

    return Case(size, flops, repeats, run, clock(ops), int8=activations is not Activations.FLOAT)


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
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="rows of the products")
    options = parser.parse_args()
    formats, row_counts = options.formats.split(","), [int(m) for m in options.rows.split(",")]
    if unknown := set(formats) - set(FORMATS):
        parser.error(f"--formats has {', '.join(sorted(unknown))}; known: {', '.join(FORMATS)}")
    ops = CpuOps(isa=options.isa, num_threads=options.threads)
    memory = torch.empty(WORKING_SET + (256 << 20), dtype=torch.uint8)
    load_library().advise_huge_pages(memory)
    memory.view(torch.bfloat16).normal_()
    probe = Probe(memory)
    weights = memory[-memory.data_ptr() % (2 << 20) :][:WORKING_SET]
    shapes = {name: shape for name, shape in LINEAR.items() if options.only in name}

    tables: dict[str, dict[str, list[Case]]] = {}
    for kind in formats:
        if kind == "bf16":
            tables["linear, bf16"] = {
                name: [linear_case(ops, n, k, m, weights if n * k * 2 <= WORKING_SET else memory) for m in row_counts]
                for name, (n, k) in shapes.items()
            }
        elif kind == "attention":
            tables["attention, bf16"] = {
                name: [
                    attention_case(ops, heads, 64, 256, 1),
                    attention_case(ops, heads, 8, 2048, 1),
                    attention_case(ops, heads, 1, 512, 512),
                    attention_case(ops, heads, 1, 2048, 512),
                ]
                for name, heads in ATTENTION.items()
                if options.only in name
            }
        else:
            tables[kind] = {name: [quantized_case(ops, kind, name, m, weights) for m in row_counts] for name in shapes}
    measure(probe, [case for table in tables.values() for row in table.values() for case in row], options.rounds)
    print(
        f"{platform.processor() or platform.machine()}, {ops.isa}, {ops.num_threads} threads: "
        f"{probe.bandwidth / 1e9:.1f} GB/s read, {probe.peak / 1e9:.0f} GFLOP/s bfloat16, "
        f"{probe.int8_peak / 1e9:.0f} GOP/s int8"
    )
    for title, table in tables.items():
        attention = ["64 x 256 decode", "8 x 2048 decode", "prefill 512", "512 after 1536"]
        columns = attention if title.startswith("attention") else [f"{m} rows" for m in row_counts]
        print_table(title, columns, table, probe)


if __name__ == "__main__":
    main()
