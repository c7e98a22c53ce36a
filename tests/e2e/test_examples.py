"""Every example runs as a user would run it; the web ones under a real uvicorn, with a client that disconnects."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_hello(smollm2: str) -> None:
    assert "Paris" in run("hello.py", smollm2)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_streams(smollm2: str, backend: str) -> None:
    output = run("many_streams.py", smollm2, backend)
    assert "tokens for 8 streams" in output


def test_cancel_and_timeouts(smollm2: str) -> None:
    output = run("cancel_and_timeouts.py", smollm2)
    assert "the host's timeout" in output
    assert "total timeout" in output
    assert "max_model_len" in output
    assert "running at the end: 0" in output


def test_structured(smollm2: str) -> None:
    output = run("structured.py", smollm2)
    assert "person: {'name'" in output
    assert re.search("^choice: (yes|no)$", output, re.MULTILINE)
    assert re.search(r"^dates: \d{4}-\d\d-\d\d", output, re.MULTILINE)
    assert "refused: structured:" in output


def test_blocking(smollm2: str) -> None:
    output = run("blocking.py", smollm2)
    assert "Paris" in output
    assert output.count("\n- ") == 4
    assert len(output.splitlines()[-1]) > 20


def test_trio(smollm2: str) -> None:
    assert len(run("trio_hello.py", smollm2)) > 20


@contextmanager
def server(name: str, *arguments: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / name), arguments[0], str(port), *arguments[1:]]
    process = subprocess.Popen(command, start_new_session=True)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, "the server ended"
            try:
                httpx.get(f"{base}/engine").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.1)
        yield base
        process.send_signal(signal.SIGINT)
        assert process.wait(30) is not None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def text_of(lines: Iterator[str]) -> str:
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["text"] for event in events[:-1])


def test_fastapi_streams_and_notices_a_disconnect(smollm2: str) -> None:
    with server("fastapi_sse.py", smollm2) as base:
        query = {"prompt": "What is the capital of France?", "max_tokens": 20}
        with httpx.stream("GET", f"{base}/stream", params=query, timeout=60) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert text_of(response.iter_lines())
        endless = {"prompt": "Count to ten thousand.", "max_tokens": 4000}
        with httpx.stream("GET", f"{base}/stream", params=endless, timeout=60) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 10
        while True:
            stats = httpx.get(f"{base}/stats").json()
            if stats["num_requests_running"] == 0 and stats["kv_pages_free"] == stats["kv_pages_total"]:
                break
            assert time.monotonic() < deadline, stats
            time.sleep(0.05)
        assert stats["request_aborted"] == 1


def test_workers_share_one_engine(smollm2: str) -> None:
    with server("fastapi_workers.py", smollm2, "2") as base:
        seen: dict[int, int] = {}
        deadline = time.monotonic() + 60
        while len(seen) < 2:
            answer = httpx.get(f"{base}/engine", timeout=60).json()
            seen[answer["worker"]] = answer["engine"]
            assert time.monotonic() < deadline, f"only {seen} answered"
        assert len(set(seen.values())) == 1
        answer = httpx.get(f"{base}/generate", params={"prompt": "Hello", "max_tokens": 4}, timeout=60).json()
        assert answer["finish_reason"] in ("stop", "length")
