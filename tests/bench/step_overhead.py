"""What a step costs in Python: batch, page tables and sampling around a model and ops that take no time.

    python -m tests.bench.step_overhead

Prints microseconds a decode step at 1, 64 and 256 sequences, best and median: building the batch, drawing, and all of
submit and collect; then the same of the runner for devices that work by themselves, as far as it is the host's (what
it enqueues is done at once here, on the CPU).
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from octavo.options import SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.runner import Runner
from octavo_engine.models.base import ModelConfig
from octavo_engine.scheduling.plan import Again, Plan, SeqStart, SeqStep

VOCAB, PAGE, MAX_SEQS, MAX_LEN = 64, 16, 256, 8192
KINDS = {
    "greedy": SamplingParams(temperature=0),
    "filters": SamplingParams(temperature=0.8, top_p=0.9, top_k=40),
    "penalties": SamplingParams(presence_penalty=0.5, repetition_penalty=1.2),
    "logprobs": SamplingParams(logprobs=5),
}


class Free:
    """Model and ops in one, all results made beforehand."""

    device = torch.device("cpu")
    config = ModelConfig("none", 30, 1, 1, 2, 1, VOCAB, MAX_LEN, torch.float32)
    tables = ()

    def __init__(self, rows: int) -> None:
        self._hidden, self._logits = torch.zeros(rows, 1), torch.zeros(rows, VOCAB)
        self._tokens = torch.zeros(rows, dtype=torch.int32)
        self._top = (
            torch.zeros(rows),
            torch.ones(rows, dtype=torch.int32),
            torch.zeros(rows, 5, dtype=torch.int32),
            torch.zeros(rows, 5),
        )

    def record(self, function: Callable[..., Any], inputs: Any, kept: Any = None) -> Callable[..., Any]:
        return function if kept is None else lambda *tensors: function(*tensors[: len(inputs)])

    def capture(self, work: Callable[[int], Any], *_: Any, **__: Any) -> Callable[[int], Any]:
        return work

    def empty_cache(self, layout: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1), torch.zeros(1)

    def forward(self, batch: Any) -> torch.Tensor:
        return self._hidden

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return self._logits

    def sample(self, *_: Any) -> torch.Tensor:
        return self._tokens

    def logprobs(self, *_: Any) -> tuple[torch.Tensor, ...]:
        return self._top


def prepared(kind: str, count: int, make: type[Runner], prompt: int = 400) -> tuple[Runner, Callable[[], Plan]]:
    """A runner with `count` decoding sequences, and what makes their next plan, as the scheduler does."""
    free: Any = Free(count)
    runner = make(
        free, free, num_pages=64, page_size=PAGE, max_num_seqs=MAX_SEQS, max_model_len=MAX_LEN, kv_dtype=torch.float32
    )
    history = list(range(prompt))
    starts = [SeqStart(i, KINDS[kind], i, [token % VOCAB for token in history], []) for i in range(count)]
    pages = list(range(prompt // PAGE))
    runner.collect(runner.submit(Plan(0, [], starts, [], [SeqStep(i, 0, [0], 0, pages, []) for i in range(count)])))
    steps = [SeqStep(i, prompt, [0], len(pages), [0], [i]) for i in range(count)]
    runner.collect(runner.submit(Plan(1, [], [], [], steps)))
    state = SimpleNamespace(further=0)

    def plan() -> Plan:
        state.further += 1
        at = prompt + state.further
        paged = [(i, at // PAGE, [at % 64]) for i in range(count)] if at % PAGE == 0 else []
        tokens = [] if runner.asynchronous else [at % VOCAB] * count
        return Plan(at, [], [], [], steps, Again(state.further, tokens, paged))

    return runner, plan


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    begin = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - begin) * 1e6


def measure(kind: str, count: int, rounds: int) -> dict[str, list[float]]:
    runner, plan = prepared(kind, count, Runner)
    slots, logits = list(range(count)), runner._logits(torch.zeros(0))
    times: dict[str, list[float]] = {"build": [], "draw": [], "submit+collect": []}
    for _ in range(rounds):
        with torch.inference_mode():
            times["draw"].append(timed(runner._sampler.draw, logits, slots))
        times["submit+collect"].append(timed(lambda step: runner.collect(runner.submit(step)), plan()))
    for _ in range(rounds):
        step = plan()
        times["build"].append(timed(runner._builder.build, step.steps, step.again))
    runner, plan = prepared(kind, count, DeviceRunner)
    times["on a device"] = [timed(lambda step: runner.collect(runner.submit(step)), plan()) for _ in range(rounds)]
    return times


def main(rounds: int = 300) -> None:
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}: microseconds a decode step, best / median of {rounds}")
    print(f"{'sequences':>9} {'sampling':>10} {'build':>15} {'draw':>15} {'submit+collect':>15} {'on a device':>15}")
    for count in (1, 64, 256):
        for kind in KINDS:
            times = measure(kind, count, rounds).values()
            cells = [f"{min(values):.1f} / {statistics.median(values):.1f}" for values in times]
            print(f"{count:>9} {kind:>10} " + " ".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    main()
