"""`octavo serve` as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["KEY", "serving"]

KEY = "sesame"


@contextmanager
def serving(
    model: str, *arguments: str, command: list[str] | None = None, said: list[str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server, and its process. command: another one than ours. said: gets what it says on stderr."""
    command = command or [sys.executable, "-c", "from octavo.cli import main; raise SystemExit(main())", "serve", model]
    command = [*command, "--port", "0", "--served-model-name", "smol", "--api-key", KEY, *arguments]
    lines = [] if said is None else said
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = process.stderr
        try:
            for line in said:
                lines.append(line)
                if " on http://" in line:
                    break
            else:
                pytest.fail("".join(lines))
            rest = threading.Thread(target=lambda: lines.extend(said), daemon=True)
            rest.start()
            yield line.split(" on ")[1].strip(), process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        rest.join()
    assert not re.search("Traceback|Fatal Python error", "".join(lines)), "".join(lines)
