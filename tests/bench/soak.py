"""`python -m tests.bench.soak`: 500 streaming HTTP clients on `octavo serve` for two minutes.

Eight of ten read as fast as they can, one sleeps between events, one leaves in the middle of an answer; each asks again
as soon as it is done. Every answer must be, to the character, what the same request gets alone (as far as it was read):
then no token was lost, doubled or given to another. Memory of all server processes is read every second. The engine
tells how long it was in its model; with so many streams it always has work, so the rest of the time is what everything
else took.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import anyio
import msgspec

from octavo.load.exchange import Answer, Target
from octavo.load.summary import percentile
from tests.bench.machine import save
from tests.bench.models import model_path
from tests.bench.report import figure, table
from tests.openai.serving import KEY, serving

__all__ = ["Soak", "soak"]

_PATH = "/v1/completions"
_TOPICS = ("the sea", "a clock", "bread", "the moon", "a letter", "winter", "a bridge", "music")
_LENGTHS = (24, 48, 96)
_SLOW = 0.2  # seconds that a slow reader sleeps at most between two events

Question = tuple[str, int]  # prompt, tokens
Pids = Callable[[], dict[str, int]]


class Soak:
    """One run. pids: the processes whose memory is watched, by name. scale: of the answers' lengths and of how long a
    slow reader sleeps."""

    def __init__(
        self, target: Target, model: str, streams: int, seconds: float, pids: Pids, scale: float = 1.0
    ) -> None:
        self.target, self.model, self.streams, self.seconds, self.pids = target, model, streams, seconds, pids
        lengths, self.slow = [round(scale * length) for length in _LENGTHS], scale * _SLOW
        self.questions = [(f"Here is a short text about {topic}:", n) for topic in _TOPICS for n in lengths]
        self.alone: dict[Question, str] = {}
        self.gaps: list[float] = []
        self.first: list[float] = []
        self.ends: Counter[str] = Counter()
        self.memory: dict[str, list[float]] = {}

    async def run(self) -> dict[str, Any]:
        for question in self.questions:
            self.alone[question], _ = await self._ask(question, math.inf, random.Random(0), "alone")
        before, started, cpu = await self._figures(), time.perf_counter(), time.process_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tasks.cancel_scope)
            async with anyio.create_task_group() as clients:
                for number in range(self.streams):
                    clients.start_soon(self._client, number, started + self.seconds)
                await anyio.sleep(self.seconds)
                after, wall = await self._figures(), time.perf_counter() - started
            tasks.cancel_scope.cancel()
        return self._result(before, after, wall, (time.process_time() - cpu) / (time.perf_counter() - started))

    async def _client(self, number: int, until: float) -> None:
        draw, kind = random.Random(number), {8: "slow", 9: "leaves"}.get(number % 10, "reader")
        while time.perf_counter() < until:
            question = draw.choice(self.questions)
            try:
                text, tokens = await self._ask(question, until, draw, kind)
            except Exception as error:  # whatever it is, it is one more answer that was lost
                self.ends[f"failed: {type(error).__name__}: {error}"] += 1
                continue
            expected, count = self.alone[question], question[1]
            if (text, tokens) == (expected, count):
                self.ends[kind] += 1
            elif tokens is None and expected.startswith(text):
                self.ends["left" if time.perf_counter() < until else "cut"] += 1
            else:
                self.ends["wrong"] += 1

    async def _ask(self, question: Question, until: float, draw: random.Random, kind: str) -> tuple[str, int | None]:
        """(the answer, its tokens by the server's count), None where the client left: early, or as time was up."""
        prompt, count = question
        body = {"model": self.model, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        stay = draw.randint(1, count) if kind == "leaves" else 1 << 30
        pieces: list[str] = []
        last, tokens = time.perf_counter(), -1
        async with Answer.to(self.target, "POST", _PATH, msgspec.json.encode(body)) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {(await answer.body())[:200]!r}")
            async for came, data in answer.events():
                if data == b"[DONE]":
                    return "".join(pieces), tokens
                chunk = msgspec.json.decode(data)
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
                elif chunk["choices"][0]["text"]:
                    if kind == "reader":
                        (self.gaps if pieces else self.first).append(came - last)
                    last = came
                    pieces.append(chunk["choices"][0]["text"])
                    if len(pieces) >= stay or time.perf_counter() >= until:
                        return "".join(pieces), None
                if kind == "slow":
                    await anyio.sleep(draw.uniform(0, self.slow))
        raise RuntimeError("the answer ended without [DONE]")

    async def _figures(self) -> dict[str, float]:
        async with Answer.to(self.target, "GET", "/page/figures") as answer:
            values: dict[str, float] = msgspec.json.decode(await answer.body())["values"]
            return values

    async def _watch(self, scope: anyio.CancelScope) -> None:
        while True:
            for name, pid in self.pids().items():
                self.memory.setdefault(name, []).append(_resident(pid))
            await anyio.sleep(min(1.0, self.seconds / 20))

    async def settled(self) -> dict[str, float]:
        """The engine's figures when nothing runs any more. Raises TimeoutError."""
        with anyio.fail_after(30):
            while (figures := await self._figures()).get("num_requests_live", 0) > 0:
                await anyio.sleep(0.05)
        return figures

    def _result(self, before: dict[str, float], after: dict[str, float], wall: float, cpu: float) -> dict[str, Any]:
        model = after.get("model_seconds", 0.0) - before.get("model_seconds", 0.0)
        steps = after.get("model_steps", 0.0) - before.get("model_steps", 0.0)
        return {
            "streams": self.streams,
            "seconds": wall,
            "complete": {kind: self.ends[kind] for kind in ("reader", "slow")},
            "left": self.ends["left"],
            "cut_at_the_end": self.ends["cut"],
            "wrong": self.ends["wrong"],
            "failed": {kind: count for kind, count in self.ends.items() if kind.startswith("failed")},
            "tokens_per_second": (after.get("generation_tokens", 0) - before.get("generation_tokens", 0)) / wall,
            "gap_ms": {f"p{share}": percentile(self.gaps, share) * 1e3 for share in (50, 90, 99)},
            "first_ms": {f"p{share}": percentile(self.first, share) * 1e3 for share in (50, 99)},
            "model_steps": steps,
            "share_outside_model": 1 - model / wall if steps else None,
            "client_cpu_share": cpu,
            "memory_mb": {name: _quarters(values) for name, values in self.memory.items()},
        }


async def soak(
    target: Target, model: str, streams: int, seconds: float, pids: Pids, scale: float = 1.0
) -> dict[str, Any]:
    run = Soak(target, model, streams, seconds, pids, scale)
    result = await run.run()
    figures = await run.settled()
    result["pages_held_at_the_end"] = figures.get("kv_pages_total", 0.0) - figures.get("kv_pages_free", 0.0)
    return result


def _resident(pid: int) -> float:
    """MB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1e3


def _quarters(values: list[float]) -> list[float]:
    """The mean of each quarter of the time."""
    size = max(1, len(values) // 4)
    return [round(mean(values[i * size : (i + 1) * size]), 1) for i in range(min(4, len(values)))]


def _processes(server: int) -> dict[str, int]:
    """The server and the engine that it has spawned."""
    found = {"server": server}
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"octavo_engine" in command:
            found["engine"] = int(child)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "costless"])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--name", default="soak", help="results/NAME.json")
    options = parser.parse_args()
    with serving(str(model_path(options.model)), "--max-num-seqs", str(options.streams + 12)) as (url, process):
        target = Target.at(url, KEY)
        result = anyio.run(soak, target, "smol", options.streams, options.seconds, lambda: _processes(process.pid))
    rows = [
        ["answers complete and right", f"{sum(result['complete'].values()):,}"],
        ["lost, doubled or changed", f"{result['wrong'] + sum(result['failed'].values()):,}"],
        ["right so far, left by their readers", f"{result['left']:,}"],
        ["right so far, cut at the end", f"{result['cut_at_the_end']:,}"],
        ["tokens/s", figure(result["tokens_per_second"])],
        ["between two pieces of text, p50, ms", figure(result["gap_ms"]["p50"])],
        ["between two pieces of text, p99, ms", figure(result["gap_ms"]["p99"])],
        ["first text, p99, ms", figure(result["first_ms"]["p99"])],
        ["time outside the model's step", f"{result['share_outside_model']:.1%}"],
        ["these clients, share of a core", f"{result['client_cpu_share']:.0%}"],
        ["pages held at the end", f"{result['pages_held_at_the_end']:.0f}"],
    ]
    rows += [[f"memory of the {name}, MB, by quarters", str(values)] for name, values in result["memory_mb"].items()]
    print(table(f"{options.streams} streams on {options.model} for {result['seconds']:.0f} s", ["", "value"], rows))
    save(options.name, {"model": options.model, **result})
    if result["wrong"] or result["failed"]:
        sys.exit(f"{result['wrong']} wrong, failed: {result['failed']}")


if __name__ == "__main__":
    main()
