"""A whole engine on Llama-3.1-8B's shape with random weights, through its client: `python -m tests.bench.gpu.engine`.

One stream in bfloat16 and int4, and 256 streams at once, 128 tokens in and 128 out, greedy. The floor of a step is the
larger of weights and cache over the copy bandwidth and the multiply-adds over the bfloat16 peak (tests.bench.floors).
The device is probed before the first engine and after the last: an engine takes nearly all of its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.bench.floors import Floor
from tests.bench.floors import Machine as Floors
from tests.bench.gpu.probes import Machine, probe
from tests.bench.gpu.report import write
from tests.bench.gpu.timing import DeviceClock
from tests.bench.measure import measure
from tests.bench.models import MODELS, config_folder
from tests.bench.weights import Weights, weights
from tests.bench.workload import Case, prompts

__all__ = ["CASES", "engine"]

MODEL = "llama-8b"
# Kinds of weights, and what is asked of an engine with them.
CASES = {"bf16": [Case(1, 128, 128), Case(256, 128, 128)], "int4:g128,float": [Case(1, 128, 128), Case(256, 128, 128)]}
WARM_UP = 8


async def engine(
    held: Weights, cases: list[Case], machine: Machine, *, model: str = MODEL, device: str = "cuda"
) -> AsyncIterator[dict[str, Any]]:
    """A dict a case: tokens/s over all and while every stream decodes, and their shares of the floor."""
    folder = config_folder(model)
    options = EngineOptions(
        model=str(folder),
        device=device,
        dtype="bfloat16",
        quantization=held.quantization,
        max_num_seqs=max(case.streams for case in cases),
        max_model_len=max(64, *(case.prompt + case.output for case in cases)),
        quantized_cache=None,
        ready_timeout=300.0,
    )
    command = [
        sys.executable,
        "-m",
        "tests.bench.gpu.random_engine",
        "--options",
        msgspec.json.encode(options).decode(),
    ]
    began = asyncio.get_running_loop().time()
    async with AsyncClient(folder, options, _command=command) as client:
        named = {"bench": "engine", "model": model, "weights": held.name}
        yield {**named, "ready_seconds": asyncio.get_running_loop().time() - began}
        vocab = MODELS[model].vocab
        for case in cases:
            # Twice the streams' own prompts, with few tokens: what a first step initialises is not what is measured.
            for seed in ("warm-up", "again"):
                await measure(client, prompts(case, vocab, seed), _params(WARM_UP))
            made = await measure(client, prompts(case, vocab, "measured"), _params(case.output))
            floor = Floor(MODELS[model], held, Floors(machine.copy, machine.gemm, machine.gemm))
            decode = made.decode_rate()
            yield {
                **named,
                "streams": case.streams,
                "tokens_per_second": case.counted / made.seconds,
                "share": case.counted / made.seconds / floor.overall_rate(case),
                "decode_tokens_per_second": decode,
                "decode_share": decode / floor.decode_rate(case) if decode else None,
                "first_token_ms": made.first_token()[0] * 1e3,
                "floor_is": floor.limit(case),
            }


def _params(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)


async def _all(out: Path | None) -> None:
    machine = _probe()
    write([{"bench": "probe", **machine.as_dict()}], out)
    for name, cases in CASES.items():
        async for figure in engine(weights(name, MODEL), cases, machine):
            write([figure], out)
    write([{"bench": "probe", **_probe().as_dict()}], out)


def _probe() -> Machine:
    """And give the memory back."""
    machine = probe(DeviceClock(), torch.device("cuda"))
    gc.collect()
    torch.cuda.empty_cache()
    return machine


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="append figures to this file, one JSON object a line")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit(f"octavo: no CUDA device here (torch {torch.__version__})")
    asyncio.run(_all(out))


if __name__ == "__main__":
    main()
