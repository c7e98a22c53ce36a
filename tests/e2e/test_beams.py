"""Beam search through the client: what transformers' generate(num_beams=...) finds, alone, crowded and preempted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from transformers import AutoModelForCausalLM

import octavo
from octavo import AsyncClient, BeamParams, Completion, EngineOptions, SamplingParams
from tests.support.oracle import transformers_smollm2

pytestmark = pytest.mark.anyio

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]
CASES: list[dict[str, Any]] = [
    {"beam_width": 4, "max_tokens": 20, "n": 4},
    {"beam_width": 3, "max_tokens": 20, "length_penalty": 2.0, "early_stopping": True},
    {"beam_width": 5, "max_tokens": 25, "length_penalty": 0.0, "early_stopping": "never", "n": 3},
    {"beam_width": 4, "max_tokens": 15, "length_penalty": -1.0, "n": 4},
    {"beam_width": 2, "max_tokens": 30, "length_penalty": 1.5, "early_stopping": "never", "n": 2},
    {"beam_width": 6, "max_tokens": 12, "stop_token_ids": (7, 11, 60), "n": 6},
    {"beam_width": 4, "max_tokens": 12, "min_tokens": 8, "stop_token_ids": (7, 11), "n": 2},
    {"beam_width": 3, "max_tokens": 10, "ignore_eos": True, "n": 3},
]


def theirs(model: Any, prompt: list[int], params: BeamParams, eos: list[int]) -> list[tuple[list[int], float]]:
    """(tokens, score) of the texts that transformers returns."""
    ends = [] if params.ignore_eos else eos
    found = model.generate(
        torch.tensor([prompt]),
        num_beams=params.beam_width,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        eos_token_id=[*ends, *params.stop_token_ids] or None,
        pad_token_id=0,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    lengths = (found.beam_indices >= 0).sum(-1)
    texts = [row[len(prompt) : len(prompt) + n].tolist() for row, n in zip(found.sequences, lengths, strict=True)]
    return list(zip(texts, found.sequences_scores.tolist(), strict=True))


def assert_equal(done: Completion, expected: list[tuple[list[int], float]]) -> None:
    assert [list(choice.token_ids) for choice in done.choices] == [tokens for tokens, _ in expected]
    assert [choice.score for choice in done.choices] == pytest.approx([score for _, score in expected], rel=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_equal_to_transformers_on_a_tiny_model(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.generation_config.eos_token_id = None
    cases = [BeamParams(**case, logprobs=1) for case in CASES]
    done: dict[int, Completion] = {}

    async def one(client: AsyncClient, i: int) -> None:
        done[i] = await client.generate(PROMPT[: 3 + i], cases[i])

    # All at once, beside others, in a cache that holds about a quarter of it.
    options = EngineOptions(max_num_seqs=8, kv_cache_memory=40 * 16 * 2 * 2 * 2 * 8 * 4, max_num_batched_tokens=16)
    async with AsyncClient(tiny, options) as client, anyio.create_task_group() as group:
        for i in range(len(cases)):
            group.start_soon(one, client, i)
        sampled = SamplingParams(max_tokens=50, ignore_eos=True, n=3)
        group.start_soon(client.generate, PROMPT, sampled)
    for i, params in enumerate(cases):
        assert_equal(done[i], theirs(model, PROMPT[: 3 + i], params, [2]))
        for choice in done[i].choices:
            assert choice.logprobs is not None
            assert sum(entry.logprob for entry in choice.logprobs) == pytest.approx(choice.cumulative_logprob)
            assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
            ended = choice.token_ids[-1] in {2, *params.stop_token_ids} and not params.ignore_eos
            assert choice.finish_reason == ("stop" if ended else "length")


async def test_crowding_and_preemption_change_nothing(tiny: Path) -> None:
    """Law 6, to the bit."""
    params = BeamParams(beam_width=4, n=4, max_tokens=40, ignore_eos=True, logprobs=2)

    async def run(at_once: bool, **options: Any) -> tuple[list[Any], dict[str, float]]:
        done: dict[int, Any] = {}

        async def one(client: AsyncClient, i: int) -> None:
            done[i] = (await client.generate(PROMPT[i:] * 3, params)).choices

        async with AsyncClient(tiny, EngineOptions(**options)) as client:
            async with anyio.create_task_group() as group:
                for i in range(4):
                    if at_once:
                        group.start_soon(one, client, i)
                    else:
                        await one(client, i)
            return [done[i] for i in range(4)], await client.stats()

    alone, _ = await run(False, enable_prefix_caching=False)
    page = 2 * 2 * 2 * 8 * 4 * 16
    crowded, stats = await run(True, kv_cache_memory=9 * page, max_num_batched_tokens=24, max_model_len=128)
    assert crowded == alone
    assert stats["num_preemptions"] > 10
    assert stats["kv_pages_free"] == stats["kv_pages_total"]


async def test_what_a_caller_sees(tiny: Path) -> None:
    async with AsyncClient(tiny) as client:
        params = BeamParams(beam_width=3, n=2, max_tokens=6, ignore_eos=True)
        done = await client.generate(PROMPT, params)
        assert done.usage.completion_tokens == 12
        assert done.choices[0].logprobs is None
        assert done.choices[0].score == pytest.approx((done.choices[0].cumulative_logprob or 0) / 6)
        deltas = [delta async for delta in client.stream(PROMPT, params)]
        assert [(delta.index, delta.token_ids) for delta in deltas] == [
            (choice.index, choice.token_ids) for choice in done.choices
        ]
        with pytest.raises(octavo.InvalidOption, match="n=4: at most beam_width=3"):
            BeamParams(beam_width=3, n=4)
        with pytest.raises(octavo.InvalidOption, match="early_stopping='always'"):
            BeamParams(early_stopping="always")
        with pytest.raises(octavo.RequestTimeout):
            await client.generate(PROMPT, BeamParams(beam_width=16, ignore_eos=True, total_timeout=0.1))
        stream = client.stream(PROMPT, BeamParams(beam_width=16, ignore_eos=True))
        await client.abort(stream)
        assert {delta.finish_reason async for delta in stream} == {"abort"}
        stats = await client.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]


@pytest.mark.slow
async def test_equal_to_transformers_on_the_real_model(smollm2: str) -> None:
    text = "Photosynthesis is the process by which"
    async with AsyncClient(smollm2, EngineOptions(dtype="float32", quantization="none")) as client:
        eos = list(client.ready.eos_token_ids)
        cases = [
            BeamParams(beam_width=4, n=3, max_tokens=14),
            BeamParams(beam_width=3, n=3, max_tokens=14, length_penalty=0.6, early_stopping="never"),
        ]
        found = [await client.generate(text, params) for params in cases]
        with pytest.raises(octavo.InvalidRequest, match="lower beam_width"):
            await client.generate(text, BeamParams(beam_width=128, stop_token_ids=tuple(range(100))))
    model = transformers_smollm2()
    for params, done in zip(cases, found, strict=True):
        assert_equal(done, theirs(model, list(done.prompt_token_ids), params, eos))
        assert done.choices[0].text
