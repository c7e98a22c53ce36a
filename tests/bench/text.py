"""What text costs: microseconds a push of one token, beside the library's own DecodeStream in the same run.

    python -m tests.bench.text [model.gguf]

The floor that matters is a decode step's: 256 sequences push one token each. Best of several interleaved rounds.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from octavo.options import SamplingParams
from octavo_engine.text import Detokenizer, Text, load_text
from octavo_engine.weights.gguf_file import GGUFFile

DEFAULT = Path(__file__).parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROUNDS = 15
T = TypeVar("T")
ENGLISH = "The quick brown fox jumps over the lazy dog, and then it goes on for 13 more miles.\n" * 60
MIXED = "Ещё одна 😀 строка 👨‍👩‍👧‍👦, 价格是123元，日本語テキスト e\u0301 — naïve.\n" * 40


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def push_all(text: Text, params: SamplingParams, pushes: list[list[int]]) -> float:
    push = Detokenizer(text, params).push
    start = time.perf_counter()
    for ids in pushes:
        push(ids, False)
    return (time.perf_counter() - start) / len(pushes)


def decode_stream(text: Text, pushes: list[list[int]]) -> float:
    from tokenizers.decoders import DecodeStream

    backend: Any = text._backend
    tokenizer, stream = backend.tokenizer, DecodeStream(skip_special_tokens=True)
    start = time.perf_counter()
    for ids in pushes:
        stream.step(tokenizer, ids[0])
    return (time.perf_counter() - start) / len(pushes)


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    metadata = GGUFFile(path).metadata
    text, built = timed(lambda: load_text(metadata=metadata))
    _, first_chat = timed(lambda: text.encode(text.render_chat([{"role": "user", "content": "Hi"}]), False))
    again = min(timed(lambda: load_text(metadata=metadata))[1] for _ in range(5))
    print(f"{path.name} on {platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"tokenizer built in {built * 1e3:.0f} ms (best later {again * 1e3:.0f})")
    print(f"first chat (jinja2, compile) in {first_chat * 1e3:.0f} ms")

    stops = SamplingParams(stop=("\n\nUser:", "</answer>", "Observation:"))
    near = SamplingParams(stop=("The quick brown dog", "the lazy cat", "more smiles"))  # held back again and again
    pushes = {
        name: [[token] for token in text.encode(sample)] for name, sample in (("English", ENGLISH), ("mixed", MIXED))
    }
    cases: dict[str, Callable[[], float]] = {}
    for name, ids in pushes.items():
        cases[f"{name}, no stop strings"] = partial(push_all, text, SamplingParams(), ids)
        cases[f"{name}, three stop strings"] = partial(push_all, text, stops, ids)
        cases[f"{name}, DecodeStream (baseline)"] = partial(decode_stream, text, ids)
    cases["English, stop strings that nearly match"] = partial(push_all, text, near, pushes["English"])
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, case in cases.items():
            best[name] = min(best[name], case())
    for name, seconds in best.items():
        print(f"{name:42} {seconds * 1e6:6.2f} us a push {seconds * 256e6:8.0f} us a step of 256")
    sample = ENGLISH * 40
    runs = [timed(lambda: text.encode(sample)) for _ in range(5)]
    seconds = min(seconds for _, seconds in runs)
    print(f"encode {len(sample) / 1e3:.0f} k characters: {len(runs[0][0]) / seconds / 1e6:.2f} M tokens/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
