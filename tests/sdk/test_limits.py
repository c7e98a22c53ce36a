"""Hosts that have little left to give: files, room for a socket, a Python."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import process as process_module


def limited(files: int) -> Any:
    """For a child process."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return limit


@pytest.mark.parametrize("files", [7, 10, 12, 13, 15])
def test_too_few_files_are_a_typed_error(files: int) -> None:
    """ZeroMQ aborts the process where it gets none. Nothing of a failed start stays, no zombie either."""
    program = (
        "import anyio, octavo.session, sys, trio, uvloop; from tests.sdk.conftest import children, fake_client\n"
        "async def main():\n"
        "    try:\n"
        "        async with fake_client(): print('open')\n"
        "    except octavo.EngineStartError as error: print('typed')\n"
        "    assert not children()\n"
        "anyio.run(main)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=limited(files))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout in ("typed\n", "open\n")


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sys.executable is the application itself, which would open a client and start itself, and so on."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(octavo.EngineStartError, match=r"a frozen application\?.*AsyncClient\.connect"):
        process_module.engine_command(octavo.EngineOptions(model="x"))


def test_a_folder_that_is_full_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full: list[str] = []

    def mkdtemp(prefix: str, dir: str) -> str:
        if len(full) < 2:
            full.append(dir)
            raise OSError(errno.ENOSPC, "No space left on device", dir)
        return dir

    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run")
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    assert process_module.private_folder() == Path("/tmp")
    assert full == ["/run", "/var/tmp"]
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: mkdtemp(**_) if not full.clear() else "")
    with pytest.raises(octavo.EngineStartError, match=r"TMPDIR to a short path; tried: .*No space left on device"):
        process_module.private_folder()
