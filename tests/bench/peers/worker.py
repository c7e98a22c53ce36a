"""A peer's worker process as the driver sees it: started, asked, and stopped between its turns."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.peers.environments import HOME, python_of

__all__ = ["Worker", "WorkerFailed"]

SCRIPTS = Path(__file__).parent / "workers"


class WorkerFailed(Exception):
    """The peer answered with an error, died, or took too long."""


class Worker:
    """Owns the process group of one engine, "name" or "name:variant". Use as a context manager.

    Between its turns the whole group is stopped by SIGSTOP: what an idle engine spins for would be taken from the one
    that is measured.
    """

    def __init__(self, engine: str, timeout: float) -> None:
        self.engine, self.timeout = engine, timeout
        self.name, _, self.variant = engine.partition(":")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        HOME.mkdir(parents=True, exist_ok=True)
        self.log = HOME / f"{self.engine.replace(':', '-')}.worker.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [python_of(self.name), str(SCRIPTS / f"{self.name}_worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def load(self, spec: dict[str, Any]) -> float:
        """Seconds the peer took. Raises WorkerFailed."""
        return float(self._ask({"load": spec | {"variant": self.variant}})["seconds"])

    def run(self, prompts: list[list[int]], output: int) -> dict[str, Any]:
        """{"seconds", "outputs"} of all prompts generated at once. Raises WorkerFailed."""
        return self._ask({"run": {"prompts": prompts, "output": output}})

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            os.killpg(process.pid, signal.SIGCONT)
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = self._line(process)
            os.killpg(process.pid, signal.SIGSTOP)
        except (ProcessLookupError, BrokenPipeError):
            line = ""
        if not line:
            raise WorkerFailed(f"the worker died (exit code {process.poll()}); see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{answer['error']}; see {self.log}")
        return answer

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout):
                os.killpg(process.pid, signal.SIGKILL)
                raise WorkerFailed(f"no answer within {self.timeout:.0f} s (--timeout); see {self.log}")
            return process.stdout.readline()
