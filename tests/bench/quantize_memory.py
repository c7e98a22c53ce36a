"""Quantising at load: peak memory, and the second start.    python -m tests.bench.quantize_memory [--model tinyllama]

For each scheme an engine starts three times: without its cache, writing it, and reading it; the float start is beside
them. Peak memory is the engine's VmHWM at Ready, which counts pages of mapped files too. The aim is a peak under the float
checkpoint's size plus the quantised one's, and a second start of a 1.1B model at int4 within 2.5 s (warm page cache).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anyio

from octavo import AsyncClient, EngineOptions
from tests.bench.models import hf_folder

SCHEMES = ["none", "int4", "int4:g128", "int8"]
ROUNDS = 3


@dataclass(frozen=True)
class Start:
    """seconds from opening the client to Ready; peak in bytes."""

    seconds: float
    peak: int


async def start(model: Path, scheme: str, cache: str | None) -> Start:
    options = EngineOptions(quantization=scheme, quantized_cache=cache, max_model_len=1024)
    begin = time.perf_counter()
    async with AsyncClient(model, options) as client:
        seconds = time.perf_counter() - begin
        status = Path(f"/proc/{client.ready.pid}/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    return Start(seconds, peak)


async def measure(model: Path, scheme: str) -> None:
    """One line: peak while quantising against its bound, and the three starts; the best of some rounds each."""
    floats = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    plain = [await start(model, scheme, None) for _ in range(ROUNDS)]
    line = f"{scheme:10} start {min(s.seconds for s in plain):5.2f} s, peak {max(s.peak for s in plain) / 1e9:5.2f} GB"
    if scheme == "none":
        print(f"{line} ({floats / 1e9:.2f} GB on disk)", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        first = await start(model, scheme, folder)
        (file,) = Path(folder).iterdir()
        again = [await start(model, scheme, folder) for _ in range(ROUNDS)]
        bound = floats + file.stat().st_size
        peak = max(s.peak for s in (*plain, first))
        print(
            f"{line} = {peak / bound:.0%} of {bound / 1e9:.2f} GB, writing the cache {first.seconds:5.2f} s, "
            f"reading it {min(s.seconds for s in again):5.2f} s, {file.stat().st_size / 1e9:.2f} GB, peak "
            f"{max(s.peak for s in again) / 1e9:5.2f} GB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tinyllama", choices=["tinyllama", "smollm2"])
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    arguments = parser.parse_args()
    for scheme in arguments.schemes.split(","):
        anyio.run(measure, hf_folder(arguments.model), scheme)


if __name__ == "__main__":
    main()
