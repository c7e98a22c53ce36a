"""What loading takes: memory and time, quantising at load, and from the quantised cache at the second start.

    python -m tests.bench.load [--models tinyllama] [--quantization bf16 int8 int4:g128]

Memory is the engine process's own, from /proc: its peak (VmHWM) and what stays (VmRSS), both with the pages of the
files that it has mapped. The aim: a peak under the float checkpoint plus the quantised weights, the interpreter and
torch aside, whose share an engine of a model of next to no weights shows. Times are from opening the client to Ready,
the files in the page cache.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from octavo import AsyncClient, EngineOptions
from tests.bench.machine import save
from tests.bench.models import CACHE, MODELS, hf_folder
from tests.bench.report import table
from tests.bench.weights import Weights, weights

__all__ = ["load", "print_load"]

_KV_BYTES = 64 << 20
_DEFAULT = {"smollm2": ["bf16", "int8", "int4:g32"], "tinyllama": ["bf16", "int8", "int4:g128"]}


async def load(model: str, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """One dict a kind of weights; bytes and seconds. The checkpoint is a folder of bfloat16 safetensors."""
    base = await _start(hf_folder("costless"), weights("bf16", "costless"), None)
    rows = []
    for name in names:
        kind = weights(name, model)
        plain = await _start(hf_folder(model), kind, None)
        with TemporaryDirectory(prefix="load-", dir=CACHE) as cache:
            first = await _start(hf_folder(model), kind, cache)
            kept = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file())
            later = [await _start(hf_folder(model), kind, cache) for _ in range(rounds)]
        shape = MODELS[model]
        held = (shape.layer_weights * kind.layer_bits + shape.head_weights * kind.head_bits) / 8
        checkpoint = sum(file.stat().st_size for file in hf_folder(model).glob("*.safetensors"))
        rows.append(
            {
                "model": model,
                "weights": name,
                "checkpoint_bytes": checkpoint,
                "weight_bytes": held,
                "cache_bytes": kept,
                "base_rss": base["rss"],
                "plain": plain,
                "first": first,
                "second": min(later, key=lambda start: start["seconds"]),
                "under_both": max(plain["peak"], first["peak"]) - base["rss"] <= checkpoint + held,
            }
        )
    return rows


async def _start(folder: Path, kind: Weights, cache: str | None) -> dict[str, float]:
    options = EngineOptions(
        dtype="bfloat16",
        quantization=kind.quantization,
        quantized_cache=cache,
        kv_cache_memory=_KV_BYTES,
        max_model_len=512,
        ready_timeout=600.0,
    )
    began = time.perf_counter()
    async with AsyncClient(folder, options) as client:
        seconds = time.perf_counter() - began
        await client.generate([1, 2, 3])  # what a first step touches is part of what stays
        status = Path(f"/proc/{client.ready.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    kib = {name: float(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon")}
    return {"seconds": seconds, "peak": kib["VmHWM"], "rss": kib["VmRSS"], "anonymous": kib["RssAnon"]}


def print_load(rows: list[dict[str, Any]]) -> None:
    """A line a kind of weights, sizes in MB."""
    cells = []
    for row in rows:
        first, second = row["first"], row["second"]
        bound = row["checkpoint_bytes"] + row["weight_bytes"]
        cells.append(
            [
                row["model"],
                row["weights"],
                _mb(row["checkpoint_bytes"]),
                _mb(row["weight_bytes"]),
                _mb(first["peak"] - row["base_rss"]),
                f"{(first['peak'] - row['base_rss']) / bound:.0%}",
                _mb(first["rss"] - row["base_rss"]),
                _mb(second["peak"] - row["base_rss"]),
                _mb(second["rss"] - row["base_rss"]),
                f"{row['plain']['seconds']:.2f}",
                f"{first['seconds']:.2f}",
                f"{second['seconds']:.2f}",
            ]
        )
    header = [
        "",
        "weights",
        "file MB",
        "held MB",
        "peak",
        "of both",
        "stays",
        "2nd peak",
        "stays",
        "plain s",
        "first s",
        "second s",
    ]
    base = rows[0]["base_rss"] if rows else 0
    title = (
        f"loading, MB over the {_mb(base)} of an engine without weights ({_mb(_KV_BYTES)} of KV cache included);\n"
        "plain: quantised at load; first: and the cache written; second: from that cache; of both: of the file\n"
        "and the held weights together"
    )
    print(table(title, header, cells))


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}"


def main() -> int:
    """Print, and write tests/bench/results/load.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(_DEFAULT), default=list(_DEFAULT))
    parser.add_argument("--quantization", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="second starts; the best counts")
    parser.add_argument("--name", default="load", help="of the result file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in options.models:
        rows += uvloop.run(load(model, options.quantization or _DEFAULT[model], options.rounds))
    print_load(rows)
    save(options.name, {"load": rows})
    return int(not all(row["under_both"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
