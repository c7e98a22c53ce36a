"""An engine on another machine, as a user sets it up; the other machine is another address of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo
from octavo import AsyncClient, SamplingParams
from octavo.cli import main

pytestmark = pytest.mark.anyio
ENDLESS = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
OPTIONS = '{"max_model_len": 512, "kv_cache_memory": 4194304, "num_threads": 1}'

# A host that joins and streams, forks a child that stays, and sleeps: argument is the address and the keys' folder.
GUEST = """
import os, sys, anyio, octavo
from pathlib import Path
async def main():
    client = await octavo.AsyncClient.connect(
        sys.argv[1],
        server_public_key=Path(sys.argv[2]) / "engine.key",
        secret_key=Path(sys.argv[2]) / "client.key_secret",
        peer_timeout=60,
    )
    stream = client.stream([1, 2], octavo.SamplingParams(max_tokens=400, ignore_eos=True))
    await anext(stream)
    if os.fork() == 0:
        try:
            client.stream([1])
        except octavo.ClientClosed:
            print("forked", os.getpid(), flush=True)
        os.read(0, 1)
        os._exit(0)
    await anyio.sleep_forever()
anyio.run(main)
"""


@contextmanager
def engine(tiny: Path, folder: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address as it says it, and its process."""
    command = [sys.executable, "-c", "from octavo.cli import main; main()", "engine", "--model", str(tiny)]
    command += ["--options", OPTIONS, "--bind", "tcp://127.0.0.1:0", "--keys", str(folder), *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield next(line.split()[-1] for line in process.stderr if "clients join at tcp://" in line), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "keys"
    assert main(["keys", str(folder)]) == 0
    assert main(["keys", str(folder.parent / "elsewhere"), "stranger"]) == 0
    return folder


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, Any]:
    return {"server_public_key": folder / "engine.key", "secret_key": folder / "client.key_secret"}


@pytest.fixture(scope="module")
def address(tiny: Path, folder: Path) -> Iterator[str]:
    with engine(tiny, folder, "--peer-timeout", "0.6") as (address, _):
        yield address


async def alone(client: AsyncClient) -> None:
    """Until nobody else is there, with every page free."""
    with anyio.fail_after(20):
        while True:
            stats = await client.stats()
            if stats["num_clients"] == 1 and stats["num_requests_live"] == 0:
                break
            await anyio.sleep(0.02)
    assert stats["kv_pages_free"] == stats["kv_pages_total"]


async def test_what_is_asked_over_tcp_is_what_is_asked_here(tiny: Path, address: str, keys: dict[str, Any]) -> None:
    async with await AsyncClient.connect(address, **keys) as far:
        answer = await far.generate([1, 2, 3], GREEDY)
        long = await far.generate([5] * 500, SamplingParams(max_tokens=4, temperature=0, prompt_logprobs=20))
        assert long.prompt_logprobs is not None
        await far.health()
        await far.restart()
        assert (await far.generate([1, 2, 3], GREEDY)).token_ids == answer.token_ids
        stream = far.stream([1, 2], ENDLESS)
        await anext(stream)
        await stream.aclose()
        await alone(far)
        assert await far.close() == "left"


async def test_who_is_not_listed_and_who_asks_another(address: str, folder: Path, keys: dict[str, Any]) -> None:
    stranger = {**keys, "secret_key": folder.parent / "elsewhere" / "stranger.key_secret"}
    with pytest.raises(octavo.AccessDenied, match=r"public_key='.{40}', of this client, is not listed there"):
        await AsyncClient.connect(address, **stranger)
    with pytest.raises(octavo.AccessDenied, match="made up for want of a secret_key, is not listed"):
        await AsyncClient.connect(address, server_public_key=keys["server_public_key"])
    stranger["server_public_key"] = folder.parent / "elsewhere" / "stranger.key"
    with pytest.raises(octavo.AccessDenied, match="is not the key of what answers"):
        await AsyncClient.connect(address, **stranger)
    async with await AsyncClient.connect(address, **keys) as client:
        await alone(client)


@pytest.mark.parametrize("end", ["stopped", "killed, with a fork that holds the connection"])
async def test_a_client_that_vanishes_is_nobody_to_run_for(
    address: str, folder: Path, keys: dict[str, Any], end: str
) -> None:
    """Nothing ends its connection: only the heartbeats tell."""
    with ExitStack() as stack:
        guest = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", GUEST, address, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(guest.kill)
        assert guest.stdout is not None
        word, child = guest.stdout.readline().split()
        assert word == "forked"
        stack.callback(os.kill, int(child), signal.SIGKILL)
        guest.send_signal(signal.SIGSTOP if end == "stopped" else signal.SIGKILL)
        async with await AsyncClient.connect(address, **keys) as client:
            await alone(client)
            assert (await client.generate([1, 2, 3], GREEDY)).finish_reason == "length"


async def test_an_engine_that_dies_or_vanishes(tiny: Path, folder: Path, keys: dict[str, Any]) -> None:
    with engine(tiny, folder) as (address, process):
        async with await AsyncClient.connect(address, **keys) as one:
            async with await AsyncClient.connect(address, **keys, peer_timeout=0.6) as two:
                stream = two.stream([1, 2], ENDLESS)
                await anext(stream)
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(octavo.EngineDead, match=r"silent for 0\.6 s"):
                    async for _ in stream:
                        pass
            assert (await two.close(), process.poll()) == ("gone", None)
            process.kill()
            with anyio.fail_after(10), pytest.raises(octavo.EngineDead, match="closed the connection"):
                await one.generate([1], GREEDY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bind", "tcp://127.0.0.1:0"], "with keys alone, since nothing goes over tcp in the clear"),
        (["--bind", "tcp://127.0.0.1:0", "--keys", "{f}/open"], "{f}/open has mode 0644"),
        (["--bind", "ipc://{f}/s", "--keys", "{f}"], "--keys: only for --bind tcp://host:port"),
    ],
)
def test_engines_that_do_not_start(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "open").write_bytes((folder / "engine.key_secret").read_bytes())
    (folder / "open").chmod(0o644)
    command = [sys.executable, "-m", "octavo_engine", *(argument.format(f=folder) for argument in arguments)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert message.format(f=folder) in done.stderr
