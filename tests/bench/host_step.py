"""Where the host's time goes in a decode step on a device that works by itself, mail and text included.

    python -m tests.bench.host_step [--streams 1,64,256] [--steps 400] [--runs 5] [--save]

The engine's own loop (core.py) with its real mailbox, scheduler, text and DeviceRunner, around a model whose steps are
graphs that do nothing: what is enqueued is done at once, on the CPU, and nobody waits. So this is what the host does
while a GPU computes the step before; what torch's calls cost beyond that with CUDA behind them is not in it. Prompts
are of different lengths, so that in every step some sequences enter a new page.
Prints microseconds a step: each part without those that it calls (medians), and in a run of its own, since looking at
parts takes time too, the whole step and the runner's share of it, submit and collect. Of several runs the one of the
least median counts, since neighbours on the machine slow whole runs down; the medians of all are kept beside it.
"""

from __future__ import annotations

import argparse
import gc
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import zmq

from octavo import wire
from octavo.options import EngineOptions, SamplingParams
from octavo_engine.core import Core
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.mailbox import Mailbox
from octavo_engine.ops.cuda_graphs import Captured
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.text import load_text
from octavo_engine.weights import open_source
from tests.bench.machine import about, save
from tests.bench.models import model_path
from tests.bench.step_overhead import Free

PAGE, MAX_LEN, PROMPT, WARM_UP = 16, 4096, 400, 100


class _Nothing:
    """Graphs that do nothing."""

    def capture(self, work: Callable[[], torch.Tensor]) -> tuple[_Nothing, torch.Tensor]:
        return self, work()

    def replay(self) -> None:
        pass

    def free_memory(self) -> int:
        return 0


class _Device(Free):
    """Decode steps as graphs, as CudaOps has them."""

    def record(self, function: Callable[..., Any], inputs: Any, kept: Any = None) -> Callable[..., Any]:
        if kept is not None:
            return lambda *tensors: self._hidden[: len(tensors[len(inputs)])]
        return function

    def capture(self, work: Callable[[int], Any], most: int, progress: Any = None) -> Callable[[int], Any]:
        return Captured(work, most, _Nothing(), progress)

    def forward(self, batch: Any) -> torch.Tensor:
        return self._hidden[: len(batch.token_ids)]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(rows)]

    def sample(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return self._tokens[: len(logits)]


class Parts:
    """Time spent in functions, less that in others of them."""

    def __init__(self) -> None:
        self._now: defaultdict[str, int] = defaultdict(int)
        self._inner = [0]
        self.steps: list[dict[str, int]] = []

    def watch(self, owner: Any, name: str | int, part: str) -> None:
        function, clock = owner[name] if isinstance(name, int) else getattr(owner, name), time.perf_counter_ns

        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0)
            begin = clock()
            try:
                return function(*arguments, **options)
            finally:
                took = clock() - begin
                self._now[part] += took - self._inner.pop()
                self._inner[-1] += took

        if isinstance(name, int):
            owner[name] = timed
        else:
            setattr(owner, name, timed)

    def step(self) -> None:
        """One is over."""
        self.steps.append(dict(self._now))
        self._now.clear()


def watch_runner(parts: Parts, core: Core) -> None:
    parts.watch(core.runner, "submit", "runner")
    parts.watch(core.runner, "collect", "runner")


def watch_all(parts: Parts, core: Core) -> None:
    runner: Any = core.runner
    parts.watch(core.scheduler, "schedule", "schedule")
    parts.watch(runner._builder, "build", "batch")
    parts.watch(runner, "_prepare", "what is sent: arrays")
    parts.watch(runner._fixed, "stage", "what is sent: pinned")
    parts.watch(runner.queue, "enqueue", "device: the step's calls")
    parts.watch(runner, "submit", "submit, the rest")
    parts.watch(runner, "collect", "collect")
    parts.watch(core.scheduler, "commit", "commit")
    parts.watch(core, "_deliver", "deltas and their text")
    parts.watch(core, "_flush", "encode and send")


class _Mail(Mailbox):
    """Tells when the loop comes by."""

    turn: Callable[[], None] = staticmethod(lambda: None)

    def receive(self, timeout: float | None) -> Iterator[tuple[bytes, Any]]:
        self.turn()
        return super().receive(timeout)


def engine(mailbox: Mailbox, streams: int) -> Core:
    device: Any = _Device(max(streams, 8))
    device._tokens = torch.arange(len(device._tokens), dtype=torch.int32) + 300
    sizes: dict[str, Any] = {"page_size": PAGE, "max_num_seqs": streams, "max_model_len": MAX_LEN}
    pages = streams * MAX_LEN // PAGE
    runner = DeviceRunner(device, device, num_pages=pages, kv_dtype=torch.float32, **sizes)
    limits = SchedulerConfig(num_pages=pages, max_num_batched_tokens=8192, max_in_flight=2, **sizes)
    source = open_source(str(model_path("smollm2")), None, lambda *_: None)
    options = EngineOptions(model="costless", seed=0)
    ready = wire.Ready(wire.PROTOCOL_VERSION, 0, "", options, "", True, False, 49152, pages, ())
    return Core(mailbox, Scheduler(limits), runner, load_text(source), ready, owned=True, clients=set())


def measure(streams: int, steps: int, watch: Callable[[Parts, Core], None]) -> tuple[list[float], Parts]:
    """Microseconds of each step once all streams decode, and the parts that are watched."""
    with tempfile.TemporaryDirectory() as folder:
        mailbox = _Mail(f"ipc://{folder}/engine")
        core = engine(mailbox, streams)
        client = zmq.Context.instance().socket(zmq.DEALER)
        client.rcvhwm = client.linger = 0
        client.connect(f"ipc://{folder}/engine")
        params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=MAX_LEN - PROMPT - PAGE, ignore_eos=True)
        prompts = [[1000 + stream] * (PROMPT + stream * 7 % PAGE) for stream in range(streams)]
        asked = [wire.Generate(stream, params, token_ids=prompt) for stream, prompt in enumerate(prompts)]
        client.send(wire.encode([wire.Hello(wire.PROTOCOL_VERSION), *asked]))
        parts, times, last, left = Parts(), [], 0, WARM_UP

        def turn() -> None:
            nonlocal last, left
            now = time.perf_counter_ns()
            if len(core.scheduler.running.decoding) < streams:
                return
            left -= 1
            if left < 0:
                times.append((now - last) / 1e3)
                parts.step()
            else:
                parts._now.clear()
            if left == -steps:
                core.ask_drain()
            last = time.perf_counter_ns()

        mailbox.turn = turn
        gc.collect()
        gc.freeze()  # as the engine does
        watch(parts, core)
        try:
            core.run()
        finally:
            client.close()
            mailbox.close(0)
    return times, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/host_step.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, medians = {}, {}

    def quietest(streams: int, watch: Callable[[Parts, Core], None]) -> tuple[list[float], Parts]:
        runs = [measure(streams, arguments.steps, watch) for _ in range(arguments.runs)]
        medians[streams] = sorted(round(median(whole), 1) for whole, _ in runs)
        return min(runs, key=lambda run: median(run[0]))

    for streams in arguments.streams:
        _, parts = quietest(streams, watch_all)
        whole, runner = quietest(streams, watch_runner)
        names = dict.fromkeys(name for step in parts.steps for name in step)
        row = {name: median(step.get(name, 0) for step in parts.steps) / 1e3 for name in names}
        runs = [step["runner"] / 1e3 for step in runner.steps]
        for name, values in (("runner", runs), ("whole step", whole)):
            row |= {f"{name}, median": median(values), f"{name}, best": min(values)}
        found[streams] = {name: round(value, 1) for name, value in row.items()}
    print(f"{about()['cpu']}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{'microseconds a decode step':<34}" + "".join(f"{streams:>9}" for streams in found))
    for name in next(iter(found.values())):
        print(f"{name:<34}" + "".join(f"{row[name]:>9.1f}" for row in found.values()))
    print(f"{'whole step, median of each run':<34}", *medians.values())
    if arguments.save:
        kept = {"microseconds": found, "whole step, median of each run": medians}
        save("host_step", {"torch": torch.__version__, **kept})


if __name__ == "__main__":
    main()
