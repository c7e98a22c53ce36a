"""kv_cache_dtype="int8" through a whole engine: sense on the real model, law 6 to the bit, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from octavo import AsyncClient, EngineOptions, OctavoError, SamplingParams
from tests.support.checkpoints import tiny_llama

pytestmark = pytest.mark.anyio

QUESTIONS = {"What is the capital of France?": "Paris", "What is the opposite of hot?": "cold"}
SMALL = 24  # pages, of 16 tokens


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def essence(done: Any) -> list[Any]:
    return [(choice.token_ids, choice.logprobs) for choice in done.choices]


async def results(client: AsyncClient, *, at_once: bool) -> list[Any]:
    """16 requests that share half of their prompts, two of them forked."""
    found: list[Any] = [None] * 16

    async def one(i: int) -> None:
        params = SamplingParams(
            n=2 if i in (3, 8) else 1,
            temperature=0 if i % 2 else 1.0,
            seed=i,
            max_tokens=40,
            logprobs=1,
            ignore_eos=True,
        )
        prompt = [7 + (3 * j) % 90 for j in range(35)] * (i % 4 > 1) + [
            (11 * i + 5 * j) % 100 for j in range(3 + 4 * i)
        ]
        found[i] = essence(await client.generate(prompt, params))

    if not at_once:
        for i in range(16):
            await one(i)
        return found
    async with anyio.create_task_group() as group:
        for i in range(16):
            group.start_soon(one, i)
    return found


async def test_law_6_to_the_bit(tiny: Path) -> None:
    """Alone; and together in a cache too small for all, with prefix hits, forks and chunks of 50 tokens."""
    options = EngineOptions(kv_cache_dtype="int8", dtype="bfloat16")
    async with AsyncClient(str(tiny), options) as client:
        assert client.ready is not None
        assert client.ready.options.kv_cache_dtype == "int8"
        alone = await results(client, at_once=False)
    page = 2 * 2 * 16 * (2 * 8 + 8)  # layers, heads, tokens; codes and scales of a key and a value of 8
    async with AsyncClient(
        str(tiny),
        EngineOptions(
            kv_cache_dtype="int8",
            dtype="bfloat16",
            kv_cache_memory=SMALL * page,
            max_num_batched_tokens=50,
            max_num_seqs=16,
        ),
    ) as client:
        assert client.ready is not None
        assert client.ready.num_pages == SMALL
        assert await results(client, at_once=True) == alone
        stats = await client.stats()
        assert stats["num_preemptions"] > 0
        assert stats["prefix_cache_hits"] > 0


async def test_a_head_size_that_four_does_not_divide_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "odd", hidden=24, heads=4)
    with pytest.raises(OctavoError, match=r"kv_cache_dtype=.int8.: head_dim=6 must be a multiple of 4"):
        async with AsyncClient(str(checkpoint), EngineOptions(kv_cache_dtype="int8", dtype="bfloat16")):
            pass


@pytest.mark.slow
async def test_the_real_model_makes_sense(smollm2: str) -> None:
    async with AsyncClient(smollm2, EngineOptions(kv_cache_dtype="int8", quantization="none")) as client:
        greedy = SamplingParams(temperature=0, max_tokens=24)
        for question, answer in QUESTIONS.items():
            assert answer in (await client.generate(chat(question), greedy)).text
