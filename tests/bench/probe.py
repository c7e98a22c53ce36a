"""The machine's own limits, measured by a process of its own between the cases.

The process waits in a read in between, so it takes nothing from what is measured. Shared machines give other figures
from one minute to the next, hence a probe before and after every case.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.bench.floors import Machine

__all__ = ["Probe"]

_BUFFER = 512 << 20
_PASSES = 12
_ROUNDS = 400_000  # of multiply-adds: about 20 ms


class Probe:
    """Use as a context manager; each call takes about 0.3 s."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def __call__(self) -> Machine:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the probe's process ended with exit code {self._process.wait()}")
        return Machine(**json.loads(line))


def _serve() -> None:
    import torch

    from octavo_engine.ops.cpu import load_library

    library = load_library()
    library.set_num_threads(library.num_cores())
    buffer = torch.empty(_BUFFER, dtype=torch.uint8)
    library.advise_huge_pages(buffer)
    buffer.fill_(1)
    for _ in sys.stdin:
        # The best pass: what the machine can give when nobody else takes some of it.
        bandwidth = max(library.probe_bandwidth(buffer) for _ in range(_PASSES))
        arithmetic = max(library.probe_arithmetic(True, _ROUNDS) for _ in range(_PASSES // 2))
        integer = max(library.probe_arithmetic_int8(_ROUNDS) for _ in range(_PASSES // 2))
        print(json.dumps({"bandwidth": bandwidth, "arithmetic": arithmetic, "integer": integer}), flush=True)


if __name__ == "__main__":
    _serve()
