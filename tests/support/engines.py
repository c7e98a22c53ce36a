"""A real engine that the tests of a module share, each with a client of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from octavo import EngineOptions

__all__ = ["running"]


@contextmanager
def running(model: str | Path, options: EngineOptions) -> Iterator[str]:
    """Its address, for AsyncClient.connect, which waits until it is ready."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        address = f"ipc://{folder}/engine.sock"
        command = [sys.executable, "-m", "octavo_engine", "--model", str(model), "--bind", address]
        with subprocess.Popen([*command, "--options", msgspec.json.encode(options).decode()]) as process:
            try:
                yield address
            finally:
                process.terminate()
