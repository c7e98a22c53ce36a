"""What every worker speaks: one JSON object a line on its standard input and on what was its standard output.

    {"load": {"hf": FOLDER, "gguf": FILE, "variant": NAME, "threads": N, ...}}  ->  {"seconds": S}
    {"run": {"prompts": [[ids]], "output": N}}  ->  {"seconds": S, "outputs": [[ids]], ...}
    {"quit": true}

A failure answers {"error": TEXT}. Run by the peer's own interpreter: standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any, Protocol

__all__ = ["Engine", "serve"]


class Engine(Protocol):
    """One peer behind the protocol."""

    def load(self, spec: dict[str, Any]) -> None: ...

    def run(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        """Exactly `output` greedy tokens for every prompt, all prompts at once, end-of-sequence ignored."""
        ...


def serve(engine: Engine) -> None:
    """Answer until told to quit or the parent closes the pipe."""
    # Engines print as they like; the answers keep the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "quit" in asked:
            break
        try:
            answer = _answer(engine, asked)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Some peers hang in their own clean-up; nothing of theirs is worth waiting for.
    os._exit(0)


def _answer(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    if "load" in asked:
        engine.load(asked["load"])
        return {"seconds": time.perf_counter() - started}
    prompts, output = asked["run"]["prompts"], asked["run"]["output"]
    outputs = engine.run(prompts, output)
    seconds = time.perf_counter() - started
    short = [len(ids) for ids in outputs if len(ids) != output]
    if len(outputs) != len(prompts) or short:
        raise RuntimeError(f"{len(outputs)} outputs for {len(prompts)} prompts; lengths other than {output}: {short}")
    return {"seconds": seconds, "outputs": outputs}
