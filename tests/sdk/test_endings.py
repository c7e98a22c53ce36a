"""How a host may end, or be run, without a word from its client: never closed, killed, without fds or a folder."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.conftest import FAKE_ENGINE

ROOT = Path(__file__).parents[2]


def run_script(body: str, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = f"""
import asyncio, gc, os, signal, sys, threading
import octavo
def make(*behaviours):
    return octavo.AsyncClient("fake", _command=[sys.executable, {str(FAKE_ENGINE)!r}, *behaviours])
def say(client):
    os.write(3, b"%d\\n" % client.ready.pid)
{textwrap.dedent(body)}
"""
    read, write = os.pipe()
    try:
        result = subprocess.run(
            ["bash", "-c", 'eval "exec 3>&$0 $0>&-"; exec "$@"', str(write), sys.executable, *flags, "-c", script],
            pass_fds=(write,),
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'sdk'}:{ROOT / 'engine_proc'}"},
            **options,
        )
    finally:
        os.close(write)
    with os.fdopen(read) as pipe:
        result.pids = [int(line) for line in pipe.read().split()]  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_host_without_stdin_stdout_and_stderr(backend: str) -> None:
    """What is opened next gets their numbers, and a child's own stdin would cover it."""
    result = run_script(f"""
        import anyio
        async def main():
            for fd in (0, 1, 2):
                os.close(fd)
            async with make() as client:
                say(client)
                await client.generate("words 2")
        anyio.run(main, backend={backend!r})
    """)
    assert result.returncode == 0
    assert len(result.pids) == 1  # type: ignore[attr-defined]


def test_a_host_whose_folder_is_gone(tmp_path: Path) -> None:
    """Not every library loads there: the engine starts in one that exists."""
    (folder := tmp_path / "gone").mkdir()
    result = run_script(
        """
        os.rmdir(os.getcwd())
        async def main():
            async with make() as client:
                assert os.readlink(f"/proc/{client.ready.pid}/cwd") == "/"
        asyncio.run(main())
        """,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr


def wait_gone(pid: int) -> None:
    """Returns once the process has ended; a hang is the test's failure."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([fd], [], [], 10)[0]
    os.close(fd)


SLOPPY = {
    "never closed, asyncio.run": """
        async def main():
            client = make()
            say(await client.open())
        asyncio.run(main())
    """,
    "never closed, still referenced": """
        async def main():
            global client, stream
            client = make()
            say(await client.open())
            stream = client.stream("forever")
            await anext(stream)
        asyncio.run(main())
    """,
    "loop stopped, never closed": """
        loop = asyncio.new_event_loop()
        client = make()
        say(loop.run_until_complete(client.open()))
    """,
    "loop closed under us": """
        loop = asyncio.new_event_loop()
        client = make()
        say(loop.run_until_complete(client.open()))
        async def use():
            global stream
            stream = client.stream("forever")
        loop.run_until_complete(use())
        loop.close()
    """,
    "pending reader when the loop is dropped": """
        loop = asyncio.new_event_loop()
        client = make()
        say(loop.run_until_complete(client.open()))
        loop.close()
        del loop, client
        gc.collect()
    """,
    "sys.exit inside": """
        async def main():
            async with make() as client:
                say(client)
                sys.exit(0)
        asyncio.run(main())
    """,
    "sys.exit, not closed": """
        async def main():
            client = make()
            say(await client.open())
            sys.exit(0)
        asyncio.run(main())
    """,
    "collected while the loop runs": """
        async def main():
            client = make()
            say(await client.open())
            del client
            gc.collect()
            await asyncio.sleep(0.2)
        asyncio.run(main())
    """,
    "trio, never closed": """
        import trio
        async def main():
            global client
            client = make()
            say(await client.open())
        trio.run(main)
    """,
    "uvloop, never closed": """
        import uvloop
        async def main():
            global client
            client = make()
            say(await client.open())
        uvloop.run(main())
    """,
    "a daemon thread's loop still runs": """
        ready = threading.Event()
        async def main():
            async with make() as client:
                say(client)
                stream = client.stream("forever")
                await anext(stream)
                ready.set()
                async for _ in stream:
                    pass
        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        ready.wait()
    """,
    "a fork that outlives us": """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of a fork beside any thread
        async def main():
            client = make()
            say(await client.open())
            if os.fork() == 0:
                os.close(1), os.close(2), os.close(3)
                signal.alarm(15)
                signal.pause()
            os._exit(0)
        asyncio.run(main())
    """,
    "os._exit": """
        async def main():
            say(await make().open())
            os._exit(0)
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("name", SLOPPY)
def test_sloppy_endings(name: str) -> None:
    result = run_script(SLOPPY[name])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len(result.pids) == 1  # type: ignore[attr-defined]
    wait_gone(result.pids[0])  # type: ignore[attr-defined]


def test_a_closed_client_is_silent_even_with_all_warnings() -> None:
    result = run_script(
        """
        async def main():
            async with make() as client:
                say(client)
                await client.generate("words 3")
                async for _ in client.stream("forever"):
                    break
        asyncio.run(main())
        """,
        "-W",
        "always",
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_an_exception_inside_is_all_there_is_to_see() -> None:
    result = run_script(
        """
        async def main():
            async with make() as client:
                say(client)
                raise LookupError("mine")
        asyncio.run(main())
        """
    )
    assert result.returncode == 1
    assert result.stderr.strip().endswith("LookupError: mine")
    wait_gone(result.pids[0])  # type: ignore[attr-defined]


def test_the_engine_dies_with_a_killed_parent() -> None:
    result = run_script(
        """
        async def main():
            async with make() as client:
                say(client)
                os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
        """
    )
    assert result.returncode == -signal.SIGKILL
    wait_gone(result.pids[0])  # type: ignore[attr-defined]


def test_ctrl_c_mid_stream() -> None:
    result = run_script(
        """
        async def main():
            async with make() as client:
                say(client)
                async for _ in client.stream("forever"):
                    os.kill(os.getpid(), signal.SIGINT)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(5)
        """
    )
    assert (result.returncode, result.stderr) == (5, "")
    wait_gone(result.pids[0])  # type: ignore[attr-defined]
