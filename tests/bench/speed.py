"""Tokens/s at several numbers of streams, and prefill, as shares of what the machine's probes allow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from statistics import mean, median
from typing import Any

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.bench.floors import Floor, Machine
from tests.bench.measure import Measurement, measure
from tests.bench.models import MODELS, model_path
from tests.bench.probe import Probe
from tests.bench.report import figure, table
from tests.bench.weights import Weights
from tests.bench.workload import Case, prompts

__all__ = ["engine_options", "print_speed", "speed"]


def engine_options(model: str, held: Weights, todo: Sequence[Case]) -> EngineOptions:
    """Room for the longest and for the widest of the cases, twice over, so that pages are never what is waited for."""
    longest = max(64, *(case.prompt + case.output for case in todo))
    tokens = max(case.streams * (case.prompt + case.output) for case in todo)
    return EngineOptions(
        dtype="bfloat16",
        quantization=held.quantization,
        max_model_len=longest,
        kv_cache_memory=2 * (tokens + 64 * 16) * MODELS[model].kv_elements * 2,
        ready_timeout=600.0,
    )


async def speed(
    model: str, held: Sequence[Weights], todo: Sequence[Case], rounds: int, probe: Probe, patience: float
) -> list[dict[str, Any]]:
    """One dict a case, kind of weights and round: rates, their shares of the floor, latencies in seconds, and the
    probes around it.

    An engine for each kind of weights is open all the time (idle, it takes nothing) and they take turns. A case that
    took longer than `patience` seconds is not repeated.
    """
    runs: list[dict[str, Any]] = []
    slow: set[tuple[str, str]] = set()
    async with AsyncExitStack() as stack:
        clients = {}
        for kind in held:
            options = engine_options(model, kind, todo)
            clients[kind] = await stack.enter_async_context(AsyncClient(model_path(model), options))
            await measure(clients[kind], prompts(Case(2, 16, 8), MODELS[model].vocab, "warm-up"), _params(8))
        for number in range(rounds):
            for case in todo:
                asked = prompts(case, MODELS[model].vocab, f"round {number}")
                for kind, client in clients.items():
                    if (kind.name, case.name) in slow:
                        continue
                    before = probe()
                    began = time.perf_counter()
                    made = await measure(client, asked, _params(case.output))
                    if time.perf_counter() - began > patience:
                        slow.add((kind.name, case.name))
                    run = _run(model, kind, case, made, before, probe())
                    named = {"model": model, "weights": kind.name, "case": case.name, "round": number}
                    runs.append(named | run)
                    shown = f"{figure(run['tokens_per_second'])} tokens/s, {run['share']:.0%} of the floor"
                    print(f"{model}  round {number + 1}  {case.name:16}  {kind.name:12}  {shown}", flush=True)
    return runs


def _params(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)


def _run(model: str, kind: Weights, case: Case, made: Measurement, before: Machine, after: Machine) -> dict[str, Any]:
    around = {name: mean((value, asdict(after)[name])) for name, value in asdict(before).items()}
    floor = Floor(MODELS[model], kind, Machine(**around))
    rate = case.counted / made.seconds
    decode = None if case.is_prefill else made.decode_rate()
    return {
        "tokens_per_second": rate,
        "share": rate / floor.overall_rate(case),
        "decode_tokens_per_second": decode,
        "decode_share": decode / floor.decode_rate(case) if decode else None,
        "limit": floor.limit(case),
        "first_token_seconds": made.first_token(),
        "between_seconds": made.between(),
        "probes": [asdict(before), asdict(after)],
    }


def print_speed(model: str, held: Sequence[Weights], todo: Sequence[Case], runs: list[dict[str, Any]]) -> None:
    """Medians over the rounds."""
    rows = []
    for case in todo:
        for kind in held:
            found = [r for r in runs if (r["model"], r["weights"], r["case"]) == (model, kind.name, case.name)]
            rows.append([case.name, kind.name, *_cells(found)])
    first = todo[0]
    header = ["", "weights", "tokens/s", "of floor", "decoding", "of floor", "floor is", "first ms", "gap ms", "runs"]
    header += ["GB/s", "GFLOP/s", "int8 GOP/s"]
    title = (
        f"{model}, bfloat16 activations and cache, greedy, prompt {first.prompt}, output {first.output}; medians\n"
        "tokens/s: prompts included; decoding: while all streams have begun; first, gap: to the first token and\n"
        "between deltas, median / 99th percentile; GB/s, GFLOP/s, GOP/s: the machine's own probes"
    )
    print(table(title, header, rows))


def _cells(found: list[dict[str, Any]]) -> list[str]:
    def middle(key: str, index: int | None = None) -> float | None:
        values = [run[key] if index is None else run[key][index] for run in found if run[key] is not None]
        return median(values) if values else None

    probes = [probe for run in found for probe in run["probes"]]
    return [
        figure(middle("tokens_per_second")),
        _percent(middle("share")),
        figure(middle("decode_tokens_per_second")),
        _percent(middle("decode_share")),
        found[0]["limit"],
        f"{_ms(middle('first_token_seconds', 0))} / {_ms(middle('first_token_seconds', 1))}",
        f"{_ms(middle('between_seconds', 0))} / {_ms(middle('between_seconds', 1))}",
        str(len(found)),
        f"{median(p['bandwidth'] for p in probes) / 1e9:.1f}",
        f"{median(p['arithmetic'] for p in probes) / 1e9:.0f}",
        f"{median(p['integer'] for p in probes) / 1e9:.0f}",
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else figure(seconds * 1e3)
