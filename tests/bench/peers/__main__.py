"""`make bench-peers`: octavo and the engines one would otherwise use, on the same work in one interleaved run.

Every engine is loaded once in a process of its own. In every round each case goes to each engine in turn, starting
with another one every round; the medians over the rounds are compared. Prompts are random token ids, new in every round
and case but the same for all engines. What took an engine longer than --patience is not asked of it again, and wider
cases than one that took longer than --give-up are not asked at all.
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
from tests.bench.peers.engines import DEFAULT, INT4_GROUP, OCTAVO_INT4, best, is_known, order, width
from tests.bench.peers.environments import PeerUnavailable, python_of
from tests.bench.peers.worker import Worker, WorkerFailed
from tests.bench.report import figure, table
from tests.bench.workload import Case, cases, prompts

_WIDE = 32  # streams from which on --wide-output holds


def main() -> int:
    """Exit status 1 where no engine could be measured."""
    options = _arguments()
    todo = cases(options.streams, options.prompt, options.output, options.prefill)
    todo = [
        Case(case.streams, case.prompt, options.wide_output or case.output) if case.streams >= _WIDE else case
        for case in todo
    ]
    with ExitStack() as stack:
        workers = _load(stack, options, todo)
        runs = Rounds(options, todo, workers).run() if workers else []
    if not runs:
        return 1
    named = {"prompt": options.prompt, "output": options.output, "wide_output": options.wide_output or options.output}
    result = {"model": options.model, **named, "runs": runs}
    _print(result, todo)
    path = save(options.name or f"peers-{options.model}", result)
    _picture(path)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[name for name in MODELS if name != "costless"], default="smollm2")
    parser.add_argument("--engines", type=_engine, nargs="+", metavar="NAME", help="such as octavo:int4 openvino:int4")
    parser.add_argument("--streams", type=_counts, default=[1, 8, 32, 64], metavar="N,N")
    parser.add_argument("--prompt", type=int, default=128, help="tokens a prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens generated for each")
    parser.add_argument("--wide-output", type=int, help=f"the same from {_WIDE} streams on, where time is short")
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the long prompt, 0 to leave it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one load or run")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds of a case that is not repeated")
    parser.add_argument("--give-up", type=float, default=240.0, help="seconds of a case after which no wider is asked")
    parser.add_argument("--name", help="of the result files")
    options = parser.parse_args()
    options.engines = options.engines or list(DEFAULT[options.model])
    return options


def _engine(name: str) -> str:
    if not is_known(name):
        known = ", ".join(dict.fromkeys(engine for engines in DEFAULT.values() for engine in engines))
        raise argparse.ArgumentTypeError(f"no engine {name!r}; known: octavo:QUANTIZATION, {known}")
    return name


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _load(stack: ExitStack, options: argparse.Namespace, todo: list[Case]) -> list[Worker]:
    tokens = max(case.streams * (case.prompt + case.output) for case in todo)
    cache = 2 * (tokens + 64 * 256) * MODELS[options.model].kv_elements * 2
    spec: dict[str, Any] = {
        "octavo": str(model_path(options.model)),
        "octavo_int4": OCTAVO_INT4[options.model],
        "hf": str(hf_folder(options.model)),
        "gguf": str(gguf_bf16(options.model)) if any("llamacpp" in engine for engine in options.engines) else None,
        "gguf_q4_1": str(model_path(options.model)) if options.model == "smollm2" else None,
        "int4_group": INT4_GROUP[options.model],
        "threads": options.threads,
        "max_model_len": max(64, *(case.prompt + case.output for case in todo)),  # 64: the warm-up
        "max_num_seqs": max(case.streams for case in todo),
        "cache_bytes": cache,
    }
    workers = []
    for engine in options.engines:
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


class Rounds:
    """Who is asked what, in which order, and what they answered."""

    def __init__(self, options: argparse.Namespace, todo: list[Case], workers: list[Worker]) -> None:
        self.options, self.todo, self.workers = options, todo, workers
        self.vocab = MODELS[options.model].vocab
        self.took: dict[tuple[str, Case], float] = {}
        self.started = time.perf_counter()

    def run(self) -> list[dict[str, Any]]:
        runs = []
        for number in range(self.options.rounds):
            turn = (number * len(self.workers)) // self.options.rounds
            for case in self.todo:
                for worker in self.workers[turn:] + self.workers[:turn]:
                    if self.is_spared(worker.engine, case):
                        continue
                    run = {"engine": worker.engine, "case": case.name, "round": number} | self._ask(
                        worker, case, number
                    )
                    shown = run.get("error") or figure(run["tokens_per_second"]) + " tokens/s"
                    minutes = (time.perf_counter() - self.started) / 60
                    where = f"{minutes:5.1f} min  round {number + 1}  {case.name:16}  {worker.engine:18}"
                    print(f"{where}  {shown}", flush=True)
                    runs.append(run)
        return runs

    def is_spared(self, engine: str, case: Case) -> bool:
        """True where this took too long before, or a narrower one took so long that this would take for ever."""
        if self.took.get((engine, case), 0.0) > self.options.patience:
            return True
        narrower = [seconds for (name, done), seconds in self.took.items() if name == engine and _within(done, case)]
        return any(seconds > self.options.give_up for seconds in narrower)

    def _ask(self, worker: Worker, case: Case, number: int) -> dict[str, Any]:
        asked = prompts(case, self.vocab, f"round {number}")
        began = time.perf_counter()
        try:
            answer = worker.run(asked, case.output)
            self.took[worker.engine, case] = answer["seconds"]
            run: dict[str, Any] = {
                "tokens_per_second": case.counted / answer["seconds"],
                "first_tokens": [ids[:8] for ids in answer["outputs"][:8]],
            }
            if not case.is_prefill:
                # The same prompts' length with one token out is what the prompts alone cost.
                fresh = Case(case.streams, case.prompt, 1)
                left = answer["seconds"] - worker.run(prompts(fresh, self.vocab, f"round {number}"), 1)["seconds"]
                run["decode_tokens_per_second"] = case.streams * (case.output - 1) / left if left > 0 else None
        except WorkerFailed as error:
            self.took.setdefault((worker.engine, case), time.perf_counter() - began)
            return {"error": str(error)}
        return run


def _within(done: Case, case: Case) -> bool:
    """Less work of the same kind."""
    return done != case and done.is_prefill == case.is_prefill and done.streams < case.streams


def _print(result: dict[str, Any], todo: list[Case]) -> None:
    engines = sorted({run["engine"] for run in result["runs"]}, key=order)
    length = f"prompt {result['prompt']}, output {result['output']}"
    if result["wide_output"] != result["output"]:
        length += f" ({result['wide_output']} from {_WIDE} streams on)"
    _compare(result, engines, todo, "tokens_per_second", f"tokens/s over all the time, {length}; medians")
    decoding = [case for case in todo if not case.is_prefill]
    _compare(result, engines, decoding, "decode_tokens_per_second", f"tokens/s after the prompts, {length}; medians")
    print(_agreement(result["runs"], engines))


def _compare(result: dict[str, Any], engines: list[str], todo: list[Case], key: str, title: str) -> None:
    """Print the medians of one rate and octavo's ratios, and keep the medians in the result."""
    rates: dict[str, dict[str, float | None]] = {}
    for engine in engines:
        rates[engine] = {}
        for case in todo:
            found = _rates(result["runs"], engine, case.name, key)
            rates[engine][case.name] = median(found) if found else None
    result[f"median_{key}"] = rates
    header = ["", *(case.name for case in todo)]
    rows = [[engine, *(figure(rates[engine][case.name]) for case in todo)] for engine in engines]
    print(table(f"{result['model']}: {title}", header, rows))
    ratios = []
    for ours in (engine for engine in engines if engine.startswith("octavo")):
        for label, bits in ((f"best {width(ours)}-bit peer", width(ours)), ("best peer of all", None)):
            cells = []
            for case in todo:
                peer = best({engine: rates[engine][case.name] for engine in engines}, bits)
                cells.append(_ratio(rates[ours][case.name], peer))
            ratios.append([f"{ours} / {label}", *cells])
    if ratios:
        print(table("octavo as a multiple of", header, ratios))


def _rates(runs: list[dict[str, Any]], engine: str, case: str, key: str) -> list[float]:
    return [run[key] for run in runs if run["engine"] == engine and run["case"] == case and run.get(key)]


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}x" if ours and theirs else "-"


def _agreement(runs: list[dict[str, Any]], engines: list[str]) -> str:
    """Share of first tokens equal to those of the first engine in bfloat16: that all run the same model.

    Random prompts leave near ties, and rounded weights move them.
    """
    first = next((engine for engine in engines if width(engine) == 16), engines[0])
    reference = {
        (r["case"], r["round"]): r["first_tokens"] for r in runs if r["engine"] == first and "first_tokens" in r
    }
    parts = []
    for engine in engines:
        same = total = 0
        for run in runs:
            theirs = reference.get((run["case"], run["round"]))
            if run["engine"] != engine or engine == first or theirs is None or "first_tokens" not in run:
                continue
            same += sum(a[:1] == b[:1] for a, b in zip(theirs, run["first_tokens"], strict=True))
            total += len(theirs)
        if total:
            parts.append(f"{engine} {same / total:.0%}")
    return f"\nfirst tokens equal to those of {first}: " + ", ".join(parts)


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
