"""Law 6 to the bit on the real model: the same tokens and the same logprobs, however a request is run.

As its file stores it, in bfloat16, with keys and values in 8 bits, and quantised at load.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from octavo import AsyncClient, EngineOptions, SamplingParams

pytestmark = pytest.mark.slow

TOPICS = ["rivers", "the moon", "bread", "a lighthouse keeper", "prime numbers", "rust", "glass", "Lisbon"]
PROMPTS = [
    f"Write {20 + 13 * i} words about {topic}. Begin with the letter {chr(65 + i)}." for i, topic in enumerate(TOPICS)
]
GREEDY = SamplingParams(temperature=0, max_tokens=16, logprobs=2, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_tokens=16, logprobs=2, ignore_eos=True)
REQUESTS = [(prompt, (GREEDY, SEEDED)[i % 2]) for i, prompt in enumerate(PROMPTS)]


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def essence(done: Any) -> list[tuple[int, float, int, Any]]:
    return [(entry.token_id, entry.logprob, entry.rank, entry.top) for entry in done.choices[0].logprobs]


async def run(client: AsyncClient, *, at_once: bool, count: int = len(REQUESTS)) -> list[Any]:
    """What the first `count` requests get."""
    results: list[Any] = [None] * count

    async def one(i: int) -> None:
        prompt, params = REQUESTS[i]
        results[i] = essence(await client.generate(chat(prompt), params))

    if not at_once:
        for i in range(len(results)):
            await one(i)
        return results
    async with anyio.create_task_group() as group:
        for i in range(len(results)):
            group.start_soon(one, i)
    return results


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"quantization": "none"},
        {"kv_cache_dtype": "int8"},
        {"quantization": "int4", "quantized_cache": None},
        {"quantization": "int4:asymmetric,float", "quantized_cache": None},
        {"quantization": "int8", "quantized_cache": None},
        {"quantization": "llm_int8", "quantized_cache": None},
    ],
    ids=["stored", "bfloat16", "int8-cache", "int4", "int4-float", "int8", "llm_int8"],
)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What of EngineOptions all runs of a comparison share."""
    return dict(request.param)


@pytest.fixture(scope="module")
def runs(smollm2: str, kind: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The reference: one request at a time, no prefix cache, one thread on any machine. And the same requests among 64,
    of the same engine."""

    async def main() -> tuple[list[Any], list[Any]]:
        options = EngineOptions(enable_prefix_caching=False, num_threads=1, **kind)
        async with AsyncClient(smollm2, options) as client, anyio.create_task_group() as group:
            alone = await run(client, at_once=False)
            filler = SamplingParams(temperature=1.0, max_tokens=200, ignore_eos=True)
            for i in range(64 - len(REQUESTS)):
                group.start_soon(client.generate, [100 + i] * (1 + i % 20), filler)
            crowded = await run(client, at_once=True)
            group.cancel_scope.cancel()
        return alone, crowded

    return anyio.run(main)


@pytest.fixture
def alone(runs: tuple[list[Any], list[Any]]) -> list[Any]:
    return runs[0]


def test_in_a_batch_of_64(runs: tuple[list[Any], list[Any]]) -> None:
    alone, crowded = runs
    assert crowded == alone


@pytest.mark.anyio
@pytest.mark.parametrize("chunk", [1, 7])
async def test_chunked(smollm2: str, alone: list[Any], kind: dict[str, Any], chunk: int) -> None:
    options = EngineOptions(
        max_num_batched_tokens=chunk, max_num_seqs=min(chunk, 16), enable_prefix_caching=False, **kind
    )
    count = 4 if chunk == 1 else len(REQUESTS)  # one token a step, a step for each of a prompt's
    async with AsyncClient(smollm2, options) as client:
        assert await run(client, at_once=chunk > 1, count=count) == alone[:count]


@pytest.mark.anyio
async def test_after_a_prefix_cache_hit(smollm2: str, alone: list[Any], kind: dict[str, Any]) -> None:
    async with AsyncClient(smollm2, EngineOptions(**kind)) as client:
        assert await run(client, at_once=True) == alone
        before = (await client.stats())["prefix_cache_hits"]
        assert await run(client, at_once=False) == alone
        assert (await client.stats())["prefix_cache_hits"] >= before + 16 * len(REQUESTS)


@pytest.mark.anyio
async def test_after_preemption_on_two_threads(smollm2: str, alone: list[Any], kind: dict[str, Any]) -> None:
    """A cache of 20 pages for 8 requests of four or five pages each: some are thrown out and come back, in chunks."""
    head = 2 * 64 * 2 if "kv_cache_dtype" not in kind else 2 * 64 + 8  # bytes of a token's key and value, scales too
    page = 30 * 3 * head * 16
    sizes: dict[str, Any] = {"kv_cache_memory": 20 * page, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    options = EngineOptions(enable_prefix_caching=False, num_threads=2, **sizes, **kind)
    async with AsyncClient(smollm2, options) as client:
        together = await run(client, at_once=True)
        assert (await client.stats())["num_preemptions"] > 0
        assert together == alone
