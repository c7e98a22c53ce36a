"""Sequences beyond the trained length of a model with dynamic NTK, in a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from octavo import AsyncClient, EngineOptions, SamplingParams

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parents[1] / "models" / "oracles" / "internlm-7b-dynamic"  # trained on 64 tokens
PROMPTS = json.loads((FOLDER / "oracle.json").read_text())["prompts"]


async def answers(growth: float, *, together: bool, max_tokens: int) -> list[list[int]]:
    """Greedy tokens of each prompt."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    options = EngineOptions(
        dtype="float32", kv_cache_memory=1 << 20, max_num_seqs=4, num_threads=1, max_num_batched_tokens=64,
        max_model_len=220, dynamic_ntk_growth=growth,
    )  # fmt: skip
    found: list[list[int]] = [[] for _ in PROMPTS]
    async with AsyncClient(str(FOLDER), options) as client:

        async def one(i: int) -> None:
            found[i] = list((await client.generate(PROMPTS[i]["ids"], params)).choices[0].token_ids)

        if together:
            async with anyio.create_task_group() as group:
                for i in range(len(PROMPTS)):
                    group.start_soon(one, i)
        else:
            for i in range(len(PROMPTS)):
                await one(i)
    return found


async def test_every_token_is_a_whole_forward_s() -> None:
    expected = [prompt["greedy"] for prompt in PROMPTS]
    assert max(len(prompt["ids"]) for prompt in PROMPTS) == 130
    assert await answers(0, together=True, max_tokens=20) == expected


async def test_what_runs_beside_it_changes_nothing() -> None:
    alone = await answers(0.15, together=False, max_tokens=80)
    assert await answers(0.15, together=True, max_tokens=80) == alone
    assert [tokens[:5] for tokens in alone] == [prompt["greedy"][:5] for prompt in PROMPTS]
