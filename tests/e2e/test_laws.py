"""The design's laws, each against a real engine process."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

import octavo
from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.support.engines import running

pytestmark = pytest.mark.anyio

LOOPS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]
SMALL = EngineOptions(kv_cache_memory=2 << 20, max_num_seqs=16, num_threads=1)
ENDLESS = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def shared(tiny: Path) -> Iterator[str]:
    with running(tiny, SMALL) as address:
        yield address


async def pages_are_free(client: AsyncClient) -> None:
    """All pages free within a few steps; the stats come from the step loop itself."""
    with anyio.fail_after(5):
        while True:
            stats = await client.stats()
            if stats["kv_pages_free"] == stats["kv_pages_total"]:
                return
            await anyio.sleep(0.01)


@pytest.mark.parametrize("anyio_backend", LOOPS)
async def test_law_1_every_generate_ends_once(tiny: Path) -> None:
    """Good, bad, aborted and timed-out requests at once: each gets exactly one end, none hangs."""
    rng = random.Random(1)
    ends: list[str] = []

    async def one(client: AsyncClient) -> None:
        kind = rng.choice(["good", "text", "long", "vocabulary", "timeout", "cancel", "sampled"])
        prompt: object = [rng.randrange(128) for _ in range(rng.randrange(1, 90))]
        params = SamplingParams(temperature=0, max_tokens=rng.randrange(1, 30))
        try:
            match kind:
                case "text":
                    await client.generate("no tokenizer here", params)
                case "long":
                    await client.generate([1] * 600, params)
                case "vocabulary":
                    await client.generate([1, 5000], params)
                case "timeout":
                    await client.generate(prompt, SamplingParams(max_tokens=400, ignore_eos=True, total_timeout=0.01))
                case "sampled":
                    done = await client.generate(prompt, SamplingParams(n=3, max_tokens=10, seed=1, logprobs=2))
                    assert len(done.choices) == 3
                case "cancel":
                    with anyio.move_on_after(rng.random() / 20):
                        await client.generate(prompt, ENDLESS)
                case _:
                    await client.generate(prompt, params)
            ends.append(kind)
        except octavo.InvalidRequest:
            assert kind in ("text", "long", "vocabulary")
            ends.append(kind)
        except octavo.RequestTimeout as error:
            assert kind == "timeout"
            assert error.which == "total"
            ends.append(kind)

    async with AsyncClient(str(tiny), SMALL) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(150):
                    group.start_soon(one, client)
        await pages_are_free(client)
    assert len(ends) == 150
    assert len(set(ends)) == 7


@pytest.mark.parametrize("anyio_backend", LOOPS)
@pytest.mark.parametrize("way", ["break", "cancel", "timeout", "exception", "collected", "aclose"])
async def test_law_2_leaving_a_stream_frees_its_pages(shared: str, way: str) -> None:
    async with await AsyncClient.connect(shared) as client:
        stream = client.stream([1, 2, 3], ENDLESS)
        if way == "break":
            async for _ in stream:
                break
            del stream
        elif way == "cancel":
            with anyio.CancelScope() as scope:
                async for _ in stream:
                    scope.cancel()
        elif way == "timeout":
            with anyio.move_on_after(0.05):
                async for _ in stream:
                    pass
        elif way == "exception":
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async for _ in stream:
                    raise ZeroDivisionError
            del stream
        elif way == "collected":
            await anext(aiter(stream))
            del stream
            gc.collect()
        else:
            await anext(aiter(stream))
            await stream.aclose()
        await pages_are_free(client)
        done = await client.generate([1, 2, 3], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
        assert len(done.token_ids) == 3


PARENT = """
import asyncio, sys, octavo
async def main():
    def loading(progress):
        print("loading", flush=True)
    client = octavo.AsyncClient(sys.argv[1], octavo.EngineOptions(num_threads=1), on_progress=loading)
    async with client:
        print("pid", client.ready.pid, flush=True)
        if sys.argv[2] == "idle":
            await asyncio.sleep(600)
        async for _ in client.stream([1] * 10, octavo.SamplingParams(max_tokens=400, ignore_eos=True)):
            print("step", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.alone
@pytest.mark.parametrize("moment", ["loading", "idle", "step"])
def test_law_4_the_engine_dies_with_its_parent(tiny: Path, moment: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tiny), moment], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    wanted = {"loading": "loading", "idle": "pid", "step": "step"}[moment]
    try:
        while True:
            line = parent.stdout.readline()
            assert line, "the parent ended early"
            if line.startswith(wanted):
                break
        (engine,) = children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 2
    while alive(engine) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(engine)


@pytest.mark.alone
@pytest.mark.parametrize("anyio_backend", LOOPS)
async def test_law_4_a_dead_engine_is_a_typed_error(tiny: Path) -> None:
    """SIGKILL under 50 streams: 50 typed errors within a second, with the exit code."""
    errors: list[octavo.EngineDead] = []

    async def one(client: AsyncClient, started: anyio.Event) -> None:
        try:
            async for _ in client.stream([1, 2, 3], ENDLESS):
                started.set()
        except octavo.EngineDead as error:
            errors.append(error)

    async with AsyncClient(str(tiny), EngineOptions(num_threads=1)) as client:
        events = [anyio.Event() for _ in range(50)]
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for event in events:
                    group.start_soon(one, client, event)
                await events[0].wait()
                os.kill(client.ready.pid, signal.SIGKILL)
                killed = anyio.current_time()
        assert anyio.current_time() - killed < 1
        with pytest.raises(octavo.EngineDead):
            await client.generate([1])
    assert len(errors) == 50
    assert {error.exit_code for error in errors} == {-signal.SIGKILL}


async def test_law_4_what_signals_mean_is_the_parent_s_to_say(tiny: Path) -> None:
    """systemd sends SIGTERM to every process of a service, a terminal Ctrl-C; the parent may let requests end."""
    async with AsyncClient(str(tiny), SMALL) as client:
        async with client.stream([1, 2], ENDLESS) as stream:
            await anext(stream)
            subprocess.run(["kill", "-TERM", str(client.ready.pid)], check=True)
            os.kill(client.ready.pid, signal.SIGINT)
            tokens = sum([len(delta.token_ids) async for delta in stream])
            assert tokens > 390
        process = client._session._engine.process
        assert process is not None
        process.signal(signal.SIGTERM)  # the second rung of the ladder
        with anyio.fail_after(10):
            await process.exited.wait()
        assert process.exit_code == 0


async def test_law_4_one_killed_client_is_nobody_to_run_for(tiny: Path) -> None:
    """A process that joined and was killed is forgotten though nothing was to be sent to it."""
    program = (
        "import sys, anyio, octavo\n"
        "async def main():\n"
        "    async with await octavo.AsyncClient.connect(sys.argv[1]) as client:\n"
        "        print('joined', flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    async with AsyncClient(str(tiny), SMALL, share=True) as client:
        command = [sys.executable, "-c", program, client.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as guest:
            assert guest.stdout is not None
            assert guest.stdout.readline() == b"joined\n"
            assert (await client.stats())["num_clients"] == 2
            guest.kill()
        with anyio.fail_after(5):
            while (await client.stats())["num_clients"] != 1:
                await anyio.sleep(0.02)


async def test_law_5_no_pickle(tiny: Path) -> None:
    """An engine whose interpreter refuses to unpickle anything still loads and serves."""
    hook = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event == 'pickle.find_class': raise RuntimeError(f'unpickling {arguments}')\n"
        "sys.addaudithook(refuse)\n"
        "from octavo_engine.__main__ import main\n"
        "sys.exit(main())\n"
    )
    socket = tiny / "engine.sock"
    engine = subprocess.Popen([sys.executable, "-c", hook, "--model", str(tiny), "--bind", f"ipc://{socket}"])
    try:
        async with await AsyncClient.connect(f"ipc://{socket}") as client:
            done = await client.generate(
                [1, 2], SamplingParams(max_tokens=4, temperature=0, logprobs=1, ignore_eos=True)
            )
            assert len(done.token_ids) == 4
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(10) == 0
    finally:
        with suppress(ProcessLookupError):
            engine.kill()
        engine.wait()


@pytest.mark.slow
async def test_law_7_ten_thousand_cancelled_requests(tiny: Path) -> None:
    """Churn: every page comes back and the engine's memory stays flat."""

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def one(client: AsyncClient, n: int, limit: anyio.CapacityLimiter) -> None:
        async with limit:
            async for _ in client.stream([n % 128, 5, 6], ENDLESS):
                break

    async with AsyncClient(str(tiny), SMALL) as client:
        limit = anyio.CapacityLimiter(100)

        async def churn(count: int) -> None:
            async with anyio.create_task_group() as group:
                for n in range(count):
                    group.start_soon(one, client, n, limit)
            await pages_are_free(client)

        await churn(2_000)
        before = resident(client.ready.pid)
        await churn(8_000)
        assert resident(client.ready.pid) - before < 16 << 20
