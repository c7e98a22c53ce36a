"""One engine alone against two at once on the same cores, each with all of them as its num_threads (its default).

    python -m tests.bench.two_engines [--quantization int4] [--streams 1,8] [--rounds 3]

Two engines can at best share what one has. They must not do worse by much: with threads that spin for each other while
the other engine holds the core, two processes can fall to a hundredth (llama.cpp#13079: from 10 to 0.12 tokens/s).
Alone and both take turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import median

import uvloop

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.bench.machine import about
from tests.bench.measure import measure
from tests.bench.models import MODELS, model_path
from tests.bench.report import figure, table
from tests.bench.workload import Case, prompts


async def compare(model: str, quantization: str, streams: list[int], rounds: int, output: int) -> None:
    options = EngineOptions(dtype="bfloat16", quantization=quantization, max_model_len=64 + output)
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)

    async def rate(client: AsyncClient, case: Case, seed: str) -> float:
        made = await measure(client, prompts(case, MODELS[model].vocab, seed), params)
        return made.tokens / made.seconds

    rows = []
    async with AsyncClient(model_path(model), options) as one, AsyncClient(model_path(model), options) as two:
        for count in streams:
            case = Case(count, 64, output)
            alone: list[float] = []
            both: list[tuple[float, ...]] = []
            for number in range(rounds):
                alone += [await rate(client, case, f"alone {number}") for client in (one, two)]
                both.append(tuple(await asyncio.gather(*(rate(c, case, f"both {number}") for c in (one, two)))))
            shares = [sum(pair) / median(alone) for pair in both]
            rows.append(
                [
                    f"{count} each",
                    figure(median(alone)),
                    figure(median(min(pair) for pair in both)),
                    figure(median(max(pair) for pair in both)),
                    f"{median(shares):.0%}",
                    f"{min(shares):.0%}",
                ]
            )
    machine = about()
    title = f"{model} {quantization}, tokens/s, medians of {rounds} rounds; {machine['cpu']}, {machine['cores']} cores"
    print(table(title, ["streams", "alone", "slower of two", "faster", "sum of two / alone", "at worst"], rows))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.two_engines")
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=int, default=64, help="tokens a stream")
    options = parser.parse_args()
    uvloop.run(compare(options.model, options.quantization, options.streams, options.rounds, options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
