"""A whole engine on the stand-in for a GPU, in this process: it starts as on a device, and its steps never wait."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from octavo import AsyncClient, EngineOptions, SamplingParams
from octavo.options import replace
from octavo.speculation import Draft
from octavo_engine import serve
from octavo_engine.execution.device_runner import DeviceRunner
from tests.support.adapters import write_adapter
from tests.support.checkpoints import tiny_llama
from tests.support.stand_in import device

PROMPT = [5, 6, 7]
ADAPTED = {f"model.layers.{i}.{name}": (32, 32) for i in range(2) for name in ("self_attn.q_proj", "self_attn.o_proj")}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def run(
    options: EngineOptions, folder: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[AsyncClient], Awaitable[Any]]
) -> Any:
    """What `work` returns; the engine has this thread, the client another."""
    cores: list[Any] = []
    found: list[Any] = []
    submit = DeviceRunner.submit
    monkeypatch.setattr(serve, "_obey_signals", lambda core, spawned: cores.append(core))

    async def client() -> None:
        async with await AsyncClient.connect(f"ipc://{folder}/engine") as client:
            found.append(await work(client))

    def use() -> None:
        try:
            anyio.run(client)
        finally:
            cores[0].ask_drain()

    def unwaited(self: DeviceRunner, plan: Any) -> Any:
        gpu.waits.clear()
        step = submit(self, plan)
        assert gpu.waits == []
        return step

    with device(2 << 30) as gpu:
        monkeypatch.setattr(DeviceRunner, "submit", unwaited)
        thread = threading.Thread(target=use)
        thread.start()
        text = msgspec.json.encode(options).decode()
        assert serve.serve(f"ipc://{folder}/engine", text, model=None, spawned=False) == 0
        thread.join()
    return found[0]


def test_an_engine_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory measured, graphs captured, a draft model, adapters, processors, logprobs and embeddings: as on the CPU."""
    model = str(tiny_llama(tmp_path / "model"))
    write_adapter(tmp_path / "a", ADAPTED, rank=8, size=0.3, seed=1)
    options = EngineOptions(
        model=model,
        device="cuda",
        max_num_seqs=4,
        max_model_len=128,
        max_num_batched_tokens=64,
        gpu_memory_utilization=0.2,
        batch_invariant=True,
        enable_lora=True,
        speculation=Draft(model, num_speculative_tokens=3),
        logits_processors={"only": "tests.support.processors:only"},
    )
    only = replace(GREEDY, logits_processors={"only": {"token_ids": [5, 9, 11]}})
    asked = [(GREEDY, None), (replace(GREEDY, logprobs=2, prompt_logprobs=1), None), (only, None), (GREEDY, "a")]

    async def work(client: AsyncClient) -> Any:
        assert client.options.device in ("cuda:0", "cpu")
        await client.load_lora("a", tmp_path / "a")
        made: list[Any] = [None] * len(asked)

        async def one(i: int) -> None:
            made[i] = await client.generate(PROMPT, asked[i][0], lora=asked[i][1])

        async with anyio.create_task_group() as tasks:
            for i in range(len(asked)):
                tasks.start_soon(one, i)
        embedded = await client.embed([PROMPT])
        return [each.token_ids for each in made], embedded

    (tokens, embedded) = run(options, tmp_path, monkeypatch, work)
    (expected, vectors) = anyio.run(_served_on_the_cpu, replace(options, device="cpu"), work)
    assert tokens == expected
    assert len(embedded) == len(vectors) == 1


async def _served_on_the_cpu(options: EngineOptions, work: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
    async with AsyncClient(options.model, options) as client:
        return await work(client)
