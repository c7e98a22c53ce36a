"""Tokens/s at several numbers of streams, and prefill, as shares of what the machine's probes allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.bench.floors import Machine, decode_rate, limit, overall_rate
from tests.bench.measure import Measurement, measure
from tests.bench.models import MODELS, model_path
from tests.bench.probe import Probe
from tests.bench.report import figure, table
from tests.bench.workload import Case, prompts

__all__ = ["print_speed", "speed"]


async def speed(model: str, todo: Sequence[Case], rounds: int, probe: Probe) -> list[dict[str, Any]]:
    """One dict a case and round: rates, their shares of the floor, latencies in seconds, and the probes around it."""
    longest = max(case.prompt + case.output for case in todo)
    options = EngineOptions(dtype="bfloat16", max_model_len=longest)
    runs = []
    async with AsyncClient(model_path(model), options) as client:
        await measure(client, prompts(Case(2, 16, 8), MODELS[model].vocab, "warm-up"), _params(8))
        for number in range(rounds):
            for case in todo:
                before = probe()
                asked = prompts(case, MODELS[model].vocab, f"round {number}")
                made = await measure(client, asked, _params(case.output))
                after = probe()
                run = _run(model, case, made, before, after)
                runs.append({"model": model, "case": case.name, "round": number, **run})
                shown = f"{figure(run['tokens_per_second'])} tokens/s, {run['share']:.0%} of the floor"
                print(f"{model}  round {number + 1}  {case.name:16}  {shown}", flush=True)
    return runs


def _params(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)


def _run(model: str, case: Case, made: Measurement, before: Machine, after: Machine) -> dict[str, Any]:
    shape = MODELS[model]
    machine = Machine((before.bandwidth + after.bandwidth) / 2, (before.arithmetic + after.arithmetic) / 2)
    rate = case.counted / made.seconds
    decode = None if case.is_prefill else made.decode_rate()
    return {
        "tokens_per_second": rate,
        "share": rate / overall_rate(shape, machine, case),
        "decode_tokens_per_second": decode,
        "decode_share": decode / decode_rate(shape, machine, case) if decode else None,
        "limit": limit(shape, machine, case),
        "first_token_seconds": made.first_token(),
        "between_seconds": made.between(),
        "probes": [asdict(before), asdict(after)],
    }


def print_speed(model: str, todo: Sequence[Case], runs: list[dict[str, Any]]) -> None:
    """Medians over the rounds."""
    rows = []
    for case in todo:
        found = [run for run in runs if run["model"] == model and run["case"] == case.name]

        def middle(key: str, index: int | None = None, found: list[dict[str, Any]] = found) -> float | None:
            values = [run[key] if index is None else run[key][index] for run in found if run[key] is not None]
            return median(values) if values else None

        probes = [probe for run in found for probe in run["probes"]]
        rows.append(
            [
                case.name,
                figure(middle("tokens_per_second")),
                _percent(middle("share")),
                figure(middle("decode_tokens_per_second")),
                _percent(middle("decode_share")),
                found[0]["limit"],
                f"{_ms(middle('first_token_seconds', 0))} / {_ms(middle('first_token_seconds', 1))}",
                f"{_ms(middle('between_seconds', 0))} / {_ms(middle('between_seconds', 1))}",
                f"{median(p['bandwidth'] for p in probes) / 1e9:.1f}",
                f"{median(p['arithmetic'] for p in probes) / 1e9:.0f}",
            ]
        )
    first = todo[0]
    header = [
        "",
        "tokens/s",
        "of floor",
        "decoding",
        "of floor",
        "floor is",
        "first ms",
        "gap ms",
        "GB/s",
        "GFLOP/s",
    ]
    title = (
        f"{model}, bfloat16, greedy, prompt {first.prompt}, output {first.output}; medians\n"
        "tokens/s: prompts included; decoding: while all streams have begun; first, gap: to the first token and\n"
        "between deltas, median / 99th percentile; GB/s, GFLOP/s: the machine's own probes"
    )
    print(table(title, header, rows))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else figure(seconds * 1e3)
