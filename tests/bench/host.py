"""The host side alone: what scheduling, sampling, text, the wire and the client allow when the model costs nothing."""

from __future__ import annotations

from statistics import median
from typing import Any

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.bench.measure import measure
from tests.bench.models import MODELS, model_path
from tests.bench.report import figure, table
from tests.bench.workload import Case, prompts

__all__ = ["host", "print_host"]


async def host(streams: list[int], rounds: int, output: int = 256) -> list[dict[str, Any]]:
    """Deltas and tokens a second into `async for`, text included, over all the time and while all streams decode."""
    runs = []
    async with AsyncClient(model_path("costless"), EngineOptions(max_model_len=1024)) as client:
        if not client.ready.has_tokenizer:
            raise RuntimeError("the costless model has lost its tokenizer: no text would be made")
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        for number in range(rounds + 1):
            for count in streams:
                asked = prompts(Case(count, 8, output), MODELS["costless"].vocab, f"round {number}")
                made = await measure(client, asked, params)
                if number == 0:
                    continue  # warm-up
                runs.append(
                    {
                        "streams": count,
                        "round": number,
                        "deltas_per_second": made.deltas / made.seconds,
                        "decode_deltas_per_second": made.decode_rate(deltas=True),
                        "tokens_per_second": made.tokens / made.seconds,
                        "first_token_seconds": made.first_token(),
                    }
                )
    return runs


def print_host(runs: list[dict[str, Any]]) -> None:
    """Medians, and the best round: others' work on a shared machine only ever slows it."""
    rows = []
    for count in dict.fromkeys(run["streams"] for run in runs):
        found = [run for run in runs if run["streams"] == count]
        decode = [run["decode_deltas_per_second"] for run in found if run["decode_deltas_per_second"]]
        rows.append(
            [
                f"{count} streams",
                figure(median(run["deltas_per_second"] for run in found)),
                figure(max(run["deltas_per_second"] for run in found)),
                figure(median(decode) if decode else None),
                figure(max(decode) if decode else None),
                figure(median(run["tokens_per_second"] for run in found)),
            ]
        )
    header = ["", "deltas/s", "best", "decoding", "best", "tokens/s"]
    print(table("host side alone: one layer of 32 units, text made, uvloop, engine process included", header, rows))
