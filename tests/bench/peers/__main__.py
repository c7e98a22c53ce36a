"""`make bench-peers`: octavo and the engines one would otherwise use, on the same work in one interleaved run.

Every engine is loaded once in a process of its own. In every round each case goes to each engine in turn, starting
with another one every round; the medians over the rounds are compared. Prompts are random token ids, new in every round
and case but the same for all engines.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.machine import save
from tests.bench.models import MODELS, gguf_bf16, hf_folder, model_path
from tests.bench.peers.environments import PeerUnavailable, python_of
from tests.bench.peers.worker import Worker, WorkerFailed
from tests.bench.report import figure, table
from tests.bench.workload import Case, cases, prompts

# Those that compute in bfloat16 first: against them octavo's bfloat16 is compared.
ENGINES = ("octavo", "vllm", "openvino:bf16", "llamacpp:bf16", "transformers")
QUANTISED = ("openvino:int8", "openvino:int4", "llamacpp:q4_1")


def main() -> int:
    """Exit status 1 where no engine could be measured."""
    options = _arguments()
    todo = cases(options.streams, options.prompt, options.output, options.prefill)
    with ExitStack() as stack:
        workers = _load(stack, options)
        runs = _rounds(workers, todo, options) if workers else []
    if not runs:
        return 1
    result = {"model": options.model, "prompt": options.prompt, "output": options.output, "runs": runs}
    _print(result, todo)
    path = save(options.name or f"peers-{options.model}", result)
    _picture(path)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--model", choices=[name for name in MODELS if name != "costless"], default="smollm2")
    parser.add_argument("--engines", type=_names, default=[*ENGINES, *QUANTISED], metavar="NAME,NAME")
    parser.add_argument("--streams", type=_counts, default=[1, 8, 32, 64], metavar="N,N")
    parser.add_argument("--prompt", type=int, default=128, help="tokens a prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens generated for each")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the long prompt, 0 to leave it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one load or run")
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in ENGINES + QUANTISED:
            raise argparse.ArgumentTypeError(f"no engine {name!r}; known: {', '.join(ENGINES + QUANTISED)}")
    return names


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _load(stack: ExitStack, options: argparse.Namespace) -> list[Worker]:
    spec: dict[str, Any] = {
        "octavo": str(model_path(options.model)),
        "hf": str(hf_folder(options.model)),
        "gguf": str(gguf_bf16(options.model)),
        "gguf_q4_1": str(model_path(options.model)),
        "threads": options.threads,
        "max_model_len": max(options.prompt + options.output, options.prefill + 1),
    }
    workers = []
    for engine in options.engines:
        if options.model != "smollm2" and engine == "llamacpp:q4_1":
            continue
        try:
            worker = stack.enter_context(Worker(engine, options.timeout))
            seconds = worker.load(spec)
            worker.run(prompts(Case(2, 16, 4), MODELS[options.model].vocab, "warm-up"), 4)
        except (PeerUnavailable, WorkerFailed) as error:
            print(f"{engine}: left out: {error}", flush=True)
            continue
        print(f"{engine}: loaded in {seconds:.1f} s", flush=True)
        workers.append(worker)
    return workers


def _rounds(workers: list[Worker], todo: list[Case], options: argparse.Namespace) -> list[dict[str, Any]]:
    runs = []
    started = time.perf_counter()
    for number in range(options.rounds):
        for case in todo:
            asked = prompts(case, MODELS[options.model].vocab, f"round {number}")
            turn = (number * len(workers)) // options.rounds
            for worker in workers[turn:] + workers[:turn]:
                run: dict[str, Any] = {"engine": worker.engine, "case": case.name, "round": number}
                try:
                    answer = worker.run(asked, case.output)
                    run["tokens_per_second"] = case.counted / answer["seconds"]
                    if not case.is_prefill:
                        # The same prompts' length with one token out is what the prompts alone cost.
                        fresh = Case(case.streams, case.prompt, 1)
                        before = prompts(fresh, MODELS[options.model].vocab, f"round {number}")
                        left = answer["seconds"] - worker.run(before, 1)["seconds"]
                        run["decode_tokens_per_second"] = case.streams * (case.output - 1) / left if left > 0 else None
                    run["first_tokens"] = [ids[:8] for ids in answer["outputs"][:8]]
                    shown = figure(run["tokens_per_second"]) + " tokens/s"
                except WorkerFailed as error:
                    run["error"] = shown = str(error)
                minutes = (time.perf_counter() - started) / 60
                print(
                    f"{minutes:5.1f} min  round {number + 1}  {case.name:16}  {worker.engine:14}  {shown}", flush=True
                )
                runs.append(run)
    return runs


def _print(result: dict[str, Any], todo: list[Case]) -> None:
    runs = result["runs"]
    engines = list(dict.fromkeys(run["engine"] for run in sorted(runs, key=lambda run: run["round"])))
    engines.sort(key=lambda engine: [*ENGINES, *QUANTISED].index(engine) if engine in ENGINES + QUANTISED else 99)
    length = f"prompt {result['prompt']}, output {result['output']}; medians"
    _compare(result, engines, todo, "tokens_per_second", f"tokens/s over all the time, {length}")
    decoding = [case for case in todo if not case.is_prefill]
    _compare(result, engines, decoding, "decode_tokens_per_second", f"tokens/s after the prompts, {length}")
    if "octavo" in engines:
        print(_agreement(runs, engines))


def _compare(result: dict[str, Any], engines: list[str], todo: list[Case], key: str, title: str) -> None:
    """Print the medians of one rate and octavo's ratios, and keep the medians in the result."""
    rates: dict[tuple[str, str], float | None] = {}
    for engine in engines:
        for case in todo:
            found = _rates(result["runs"], engine, case.name, key)
            rates[engine, case.name] = median(found) if found else None
    result[f"median_{key}"] = {engine: {case.name: rates[engine, case.name] for case in todo} for engine in engines}
    header = ["", *(case.name for case in todo)]
    rows = [[engine, *(figure(rates[engine, case.name]) for case in todo)] for engine in engines]
    print(table(f"{result['model']}: {title}", header, rows))
    if "octavo" not in engines:
        return
    rows = []
    for engine in engines:
        if engine != "octavo":
            rows.append([engine, *(_ratio(rates["octavo", c.name], rates[engine, c.name]) for c in todo)])
    for label, names in (("best bfloat16 peer", ENGINES[1:]), ("best peer", ENGINES[1:] + QUANTISED)):
        best = [max((rates[e, c.name] or 0.0 for e in engines if e in names), default=0.0) or None for c in todo]
        rows.append([label, *(_ratio(rates["octavo", c.name], b) for c, b in zip(todo, best, strict=True))])
    print(table("octavo (bfloat16) as a multiple of", header, rows))


def _rates(runs: list[dict[str, Any]], engine: str, case: str, key: str) -> list[float]:
    return [run[key] for run in runs if run["engine"] == engine and run["case"] == case and run.get(key)]


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}x" if ours and theirs else "-"


def _agreement(runs: list[dict[str, Any]], engines: list[str]) -> str:
    """Share of first tokens equal to octavo's: that all engines run the same model. Random prompts leave near ties."""
    reference = {
        (r["case"], r["round"]): r["first_tokens"] for r in runs if r["engine"] == "octavo" and "first_tokens" in r
    }
    parts = []
    for engine in engines:
        same = total = 0
        for run in runs:
            ours = reference.get((run["case"], run["round"]))
            if run["engine"] != engine or engine == "octavo" or ours is None or "first_tokens" not in run:
                continue
            same += sum(a[:1] == b[:1] for a, b in zip(ours, run["first_tokens"], strict=True))
            total += len(ours)
        if total:
            parts.append(f"{engine} {same / total:.0%}")
    return "\nfirst tokens equal to octavo's: " + ", ".join(parts)


def _picture(path: Path) -> None:
    target = path.with_suffix(".png")
    script = Path(__file__).with_name("picture.py")
    try:
        subprocess.run([python_of("plot"), str(script), str(path), str(target)], check=True)
    except (PeerUnavailable, subprocess.CalledProcessError) as error:
        print(f"no picture: {error}")
        return
    print(f"picture: {os.path.relpath(target)}")


if __name__ == "__main__":
    raise SystemExit(main())
