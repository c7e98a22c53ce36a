"""`make bench`: octavo alone, through AsyncClient and a real engine process, beside the machine's own limits.

make bench ARGS="--models smollm2 --quantization bf16 int4:g32 --streams 1,64 --rounds 5"
"""

from __future__ import annotations

import argparse
from typing import Any

import uvloop

from tests.bench.host import host, print_host
from tests.bench.machine import save
from tests.bench.memory import kv_memory, print_kv_memory
from tests.bench.probe import Probe
from tests.bench.speed import print_speed, speed
from tests.bench.weights import weights
from tests.bench.workload import cases

_PARTS = ("speed", "memory", "host")
# Groups of 32 are what the demo model itself came from, groups of 128 are the field's default for larger ones.
_WEIGHTS = {"smollm2": ["bf16", "int8", "int4:g32", "stored"], "tinyllama": ["bf16", "int8", "int4:g128"]}


def main() -> int:
    """Measure the parts, print their tables and write tests/bench/results/NAME.json."""
    options = _arguments()
    result = uvloop.run(_measure(options))
    save(options.name, result)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--parts", type=_names, default=list(_PARTS), metavar="NAME,NAME", help="default: " + ",".join(_PARTS)
    )
    parser.add_argument("--models", type=_names, default=["smollm2", "tinyllama"], metavar="NAME,NAME")
    parser.add_argument(
        "--quantization",
        nargs="+",
        metavar="NAME",
        help='bf16, stored, or as EngineOptions.quantization: "int4:g128,float"',
    )
    parser.add_argument("--streams", type=_counts, default=[1, 8, 32, 64], metavar="N,N")
    parser.add_argument("--prompt", type=int, default=128, help="tokens a prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens generated for each")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the long prompt, 0 to leave it out")
    parser.add_argument("--host-streams", type=_counts, default=[1, 64, 256], metavar="N,N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=60.0, help="seconds of a case that is not repeated")
    parser.add_argument("--name", default="cpu", help="of the result file")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return text.split(",")


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if "speed" in options.parts:
        todo = cases(options.streams, options.prompt, options.output, options.prefill)
        result["speed"] = []
        with Probe() as probe:
            for model in options.models:
                held = [weights(name, model) for name in options.quantization or _WEIGHTS.get(model, ["bf16"])]
                runs = await speed(model, held, todo, options.rounds, probe, options.patience)
                print_speed(model, held, todo, runs)
                result["speed"] += runs
    if "memory" in options.parts:
        result["memory"] = await kv_memory("smollm2")
        print_kv_memory(result["memory"])
    if "host" in options.parts:
        result["host"] = await host(options.host_streams, options.rounds)
        print_host(result["host"])
    return result


if __name__ == "__main__":
    raise SystemExit(main())
