"""Speculation through the client: the same output with it on and off, by either way of guessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

import octavo
from octavo import AsyncClient, Draft, EngineOptions, NGram, SamplingParams
from tests.support.checkpoints import tiny_llama

pytestmark = pytest.mark.anyio

LINES = """def area(width, height):
    return width * height


def volume(width, height, depth):
    return area(width, height) * depth
"""
EDIT = [{"role": "user", "content": f"Repeat this code exactly:\n\n{LINES}"}]
REAL: list[SamplingParams] = [
    SamplingParams(temperature=0, max_tokens=60, logprobs=2),
    SamplingParams(temperature=0.6, seed=3, max_tokens=60, logprobs=0),
    SamplingParams(temperature=0, max_tokens=60, stop="return area"),
    SamplingParams(temperature=0.8, seed=4, max_tokens=30, n=2, repetition_penalty=1.1, min_tokens=20),
]


async def answers(client: AsyncClient, prompts: list[Any], params: list[SamplingParams]) -> list[Any]:
    """At once; what a caller sees of each, less its times."""
    done: dict[int, Any] = {}

    async def one(i: int) -> None:
        result = await client.generate(prompts[i], params[i])
        done[i] = result.choices, result.usage.completion_tokens

    async with anyio.create_task_group() as group:
        for i in range(len(prompts)):
            group.start_soon(one, i)
    return [done[i] for i in range(len(prompts))]


async def test_the_same_with_it_and_without(tiny: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", hidden=16, layers=1, seed=5)
    prompts = [[5, 6, 7, 8, 9] * (i + 2) for i in range(4)] * 2
    params = [SamplingParams(temperature=i % 2, seed=i, max_tokens=80, n=1 + i % 2, logprobs=1) for i in range(8)]
    async with AsyncClient(tiny) as client:
        plain = await answers(client, prompts, params)
    for way in (NGram(), Draft(str(tiny)), Draft(str(other), num_speculative_tokens=3)):
        async with AsyncClient(tiny, EngineOptions(speculation=way)) as client:
            assert client.ready.options.speculation == way
            assert await answers(client, prompts, params) == plain
            stats = await client.stats()
        assert stats["spec_decode_num_draft_tokens"] >= stats["spec_decode_num_accepted_tokens"]
        assert stats["kv_pages_free"] == stats["kv_pages_total"]


async def test_a_draft_of_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", vocab=96)
    with pytest.raises(octavo.EngineStartError, match="96 tokens, the model 128"):
        await AsyncClient(tiny, EngineOptions(speculation=Draft(str(other)))).open()


def test_what_options_take() -> None:
    assert EngineOptions(speculation="ngram").speculation == NGram()
    short = EngineOptions(speculation="ngram:num_speculative_tokens=3,prompt_lookup_max=2")
    assert short.speculation == NGram(num_speculative_tokens=3, prompt_lookup_max=2)
    assert EngineOptions(speculation="draft:some/model").speculation == Draft("some/model")
    for wrong in ("eagle", "draft:", "ngram:depth=3", "ngram:prompt_lookup_max=x", 3):
        with pytest.raises(octavo.InvalidOption, match="speculation"):
            EngineOptions(speculation=wrong)  # type: ignore[arg-type]
    with pytest.raises(octavo.InvalidOption, match="prompt_lookup_min=5: at most prompt_lookup_max=4"):
        NGram(prompt_lookup_min=5)


@pytest.mark.slow
async def test_the_same_on_the_real_model(smollm2: str) -> None:
    """Weights as stored; guesses are made, and most of them right."""
    prompts = [EDIT] * len(REAL)
    async with AsyncClient(smollm2) as client:
        plain = await answers(client, prompts, REAL)
    async with AsyncClient(smollm2, EngineOptions(speculation=NGram())) as client:
        assert await answers(client, prompts, REAL) == plain
        for i, params in enumerate(REAL):
            assert await answers(client, prompts[:1], [params]) == [plain[i]]
        stats = await client.stats()
    assert plain[2][0][0].stop_reason == "return area"
    assert stats["spec_decode_num_accepted_tokens"] > 20
