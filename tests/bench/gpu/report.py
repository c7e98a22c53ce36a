"""Figures as they come, one JSON object a line, so that a run that is cut short keeps what it had."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from octavo_engine.ops import Ops, OpsUnavailable, load_ops
from tests.bench.gpu.peers import Peers
from tests.bench.gpu.probes import Machine, probe
from tests.bench.gpu.timing import DeviceClock, Stopwatch

__all__ = ["line", "main", "write"]

Bench = Callable[[Ops, Stopwatch, Machine, Peers], Iterator[dict[str, Any]]]


def line(figure: Mapping[str, Any]) -> str:
    """A figure for people: names and counts as they are, measurements to three digits."""

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(round(value))

    cells = [f"{k}={cell(v)}" if isinstance(v, float) else f"{k}={v}" for k, v in figure.items() if k != "bench"]
    return f"{figure['bench']}: {'  '.join(cells)}"


def write(figures: Iterable[dict[str, Any]], out: Path | None) -> None:
    """Print every figure, and append it to `out`."""
    for figure in figures:
        print(line(figure), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(figure) + "\n")


def main(bench: Bench) -> None:
    """What `python -m` of a kernel's benchmark does: probes before and after, missing peers last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="append figures to this file, one JSON object a line")
    out = parser.parse_args().out
    try:
        ops = load_ops("cuda")
    except OpsUnavailable as error:
        sys.exit(f"octavo: {error}")
    # CudaOps has forbidden it to cuBLAS, which none of the kernels here goes through: for peers it is as torch has it.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    clock, peers = DeviceClock(), Peers()
    with torch.inference_mode():
        before = probe(clock, ops.device)
        write([{"bench": "probe", **before.as_dict()}], out)
        write(bench(ops, clock, before, peers), out)
        write([{"bench": "probe", **probe(clock, ops.device).as_dict()}], out)
    write(({"bench": "missing peer", "by": name, "why": why} for name, why in peers.missing.items()), out)
