"""Commands one after the other, each under a time limit of its own, and what became of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "Stage", "run_stage"]

ROOT = Path(__file__).resolve().parents[2]
_TAIL_LINES = 40


@dataclass(frozen=True)
class Stage:
    """limit: seconds. needed: whether what follows makes no sense after its failure."""

    name: str
    command: Sequence[str]
    limit: float
    needed: bool = False


@dataclass(frozen=True)
class Outcome:
    """status: "ok", "failed", "cut short" (at its limit) or "left out". tail: the last lines of one that was not ok,
    else the very last."""

    name: str
    status: str
    seconds: float
    command: str
    tail: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value != ()}


def run_stage(stage: Stage, log: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run it in the checkout's root, in a process group of its own, all it prints kept in `log`.

    At the limit the whole group is ended.
    """
    began = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            status = "ok" if child.wait(stage.limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "cut short"
        finally:
            _end(child)
    lines = log.read_text(errors="replace").splitlines()
    tail = tuple(lines[-1:] if status == "ok" else lines[-_TAIL_LINES:])
    return Outcome(stage.name, status, round(time.monotonic() - began, 1), " ".join(stage.command), tail)


def _end(child: subprocess.Popen[bytes]) -> None:
    """The group of a child that may have left others behind: asked first, then not asked."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            continue
    child.wait()
