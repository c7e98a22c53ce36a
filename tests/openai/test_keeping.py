"""An engine that dies behind the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trio.testing
import zmq

import octavo
from octavo.openai.keeping import WINDOW, keep_engine, keep_joined
from tests.openai.serving import KEY, serving
from tests.sdk.conftest import FAKE_ENGINE

FAKE = [sys.executable, "-m", "tests.openai.fake_serve"]
PROMPT = {"model": "smol", "prompt": "here", "max_tokens": 4}


def engine_of(pid: int) -> int:
    """The child of a server that is its engine."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if b"fake_engine" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    raise AssertionError("the server has no engine")


def until(ask: Callable[[], httpx.Response], status: int) -> httpx.Response:
    """Ask until that is the answer; each takes as long as the server takes."""
    while (answer := ask()).status_code != status:
        assert answer.status_code in (200, 503), answer.text
    return answer


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_engine_is_started_again(workers: str) -> None:
    with serving("fake", "--workers", workers, command=FAKE) as (url, process):
        headers = {"authorization": f"Bearer {KEY}", "connection": "close"}  # so that every worker is asked
        with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
            until(lambda: http.post("/v1/completions", json=PROMPT), 200)
            for _ in range(2):
                os.kill(engine_of(process.pid), signal.SIGKILL)
                down = http.get("/health")
                assert (down.status_code, down.headers["retry-after"]) == (503, "1")
                assert down.json()["error"]["code"] == "engine_unavailable"
                assert "the engine" in down.json()["error"]["message"]
                assert "stderr" not in down.json()["error"]["message"]
                answers = [until(lambda: http.post("/v1/completions", json=PROMPT), 200) for _ in range(8)]
                assert {answer.json()["choices"][0]["text"] for answer in answers} == {"here"}
                assert http.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_to_all_ends_all_without_a_word(workers: str, number: signal.Signals) -> None:
    """As a terminal and systemd send it: neither the engine that ends by it nor a worker is started again."""
    said: list[str] = []
    with serving("fake", "--workers", workers, command=FAKE, said=said) as (url, process):
        http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        with http:
            until(lambda: http.post("/v1/completions", json=PROMPT), 200)
        os.killpg(process.pid, number)
        process.wait(20)
    after = "".join(said).partition(" on http://")[2].splitlines()[1:]
    assert [line for line in after if "/v1/" not in line] == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_server_ends_with_its_engine_where_it_is_told_to(workers: str, capfd: Any) -> None:
    said: list[str] = []
    with serving("fake", "--workers", workers, "--engine-restarts", "0", command=FAKE, said=said) as (_, process):
        os.kill(engine_of(process.pid), signal.SIGKILL)
        assert process.wait(20) == 1
    assert "no engine any more (--engine-restarts 0): the engine" in "".join(said)
    assert "SIGKILL" in "".join(said)


class Mortal:
    """A client whose engine dies when told, and whose restarts end as told."""

    def __init__(self, *restarts: octavo.OctavoError | None) -> None:
        self.restarts = list(restarts)
        self.times: list[float] = []
        self.lives = 0.0

    async def died(self) -> octavo.OctavoError:
        await anyio.sleep(self.lives)
        return octavo.EngineDead("the engine was killed; last stderr:\nnoise")

    async def restart(self) -> None:
        self.times.append(anyio.current_time())
        ended = self.restarts.pop(0) if self.restarts else None
        if ended is not None:
            raise ended


def run(work: Callable[[], Any]) -> Any:
    """On a clock that jumps."""
    return trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def test_ever_later_and_then_no_more(capsys: Any) -> None:
    client: Any = Mortal(None, octavo.EngineStartError("no memory"), None)
    error = run(lambda: keep_engine(client, 3))
    assert [b - a for a, b in zip(client.times, client.times[1:], strict=False)] == [1, 3]
    assert str(error).startswith("no engine any more 4 times within 600 s (--engine-restarts 3): the engine was killed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "octavo: the engine was killed; starting it again (1 of 3 times within 600 s)"
    assert lines[1].startswith("octavo: the engine is ready again after ")
    assert lines[3] == "octavo: no memory; starting it again (3 of 3 times within 600 s)"


def test_deaths_far_apart_are_forgotten() -> None:
    client: Any = Mortal()
    client.lives = WINDOW + 1

    async def main() -> None:
        with anyio.move_on_after(20 * WINDOW):
            await keep_engine(client, 1)

    run(main)
    assert len(client.times) == 19


def test_who_has_joined_waits_for_as_long_as_it_takes() -> None:
    client: Any = Mortal(*[octavo.EngineStartError("nobody there")] * 50)
    client.lives = 100

    async def main() -> None:
        with anyio.move_on_after(199):
            await keep_joined(client, told.append)

    told: list[str] = []
    run(main)
    assert [b - a for a, b in zip(client.times, client.times[1:], strict=False)] == [1] * 50
    assert told == [
        "the engine was killed; joining it again",
        "nobody there; joining it again",
        "the engine is joined again",
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_joins_an_engine(workers: str) -> None:
    """One that somebody else runs, and starts again, over tcp with keys."""
    server, secret = (key.decode() for key in zmq.curve_keypair())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    engine = [sys.executable, str(FAKE_ENGINE), "--bind", address, f"--secret-key={secret}"]
    connect = [sys.executable, "-c", "from octavo.cli import main; raise SystemExit(main())", "serve"]
    connect += ["--connect", address, f"--server-public-key={server}"]
    first = subprocess.Popen(engine, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with ending(first), serving("", "--workers", workers, command=connect) as (url, process):
        headers = {"authorization": f"Bearer {KEY}", "connection": "close"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
            until(lambda: http.post("/v1/completions", json=PROMPT), 200)
            first.kill()
            first.wait()
            until(lambda: http.get("/health"), 503)
            with ending(subprocess.Popen(engine, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)) as second:
                answers = [until(lambda: http.post("/v1/completions", json=PROMPT), 200) for _ in range(8)]
                assert {answer.json()["choices"][0]["text"] for answer in answers} == {"here"}
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
                assert second.poll() is None
