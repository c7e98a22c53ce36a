"""A model without a file of its own in a real engine: streaming, batching, a shared prefix, chunks."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.support.fallback_models import write

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


async def test_transformers_code_in_the_engine(tmp_path: Path) -> None:
    folder = write("vaultgemma-caps", tmp_path / "m")
    options = EngineOptions(
        dtype="float32", kv_cache_memory=4 << 20, max_num_seqs=8, num_threads=1,
        max_num_batched_tokens=64,
    )  # fmt: skip
    shared = [(i * 7) % 100 + 3 for i in range(96)]
    asked = [[*shared, 5 + i] for i in range(6)]
    async with AsyncClient(str(folder), options) as client:
        done = [await client.generate(prompt, GREEDY) for prompt in asked]
        alone = [list(each.choices[0].token_ids) for each in done]
        again: list[list[int]] = [[] for _ in asked]

        async def one(i: int) -> None:
            async for delta in client.stream(asked[i], GREEDY):
                again[i] += delta.token_ids

        async with anyio.create_task_group() as group:
            for i in range(len(asked)):
                group.start_soon(one, i)
    assert again == alone
    assert len({tuple(tokens) for tokens in alone}) > 1
    # The second request and all after it found the first's full pages, and computed the rest.
    assert [each.usage.cached_tokens for each in done] == [0, *[96] * 5]
