"""SmolLM2 through the client: equal to transformers, sensible, and every sampling parameter does what it says."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
import torch

import octavo
from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.support.engines import running
from tests.support.oracle import transformers_smollm2

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

QUESTIONS = [
    "What is the capital of France?", "Name three primary colours.", "Tell me a joke.", "What is 12 times 12?",
    "Write a haiku about rain.", "Who wrote Hamlet?", "Give me a recipe for pancakes.",
    "Translate 'good morning' to Spanish.", "How far away is the Moon?", "Name a famous painter.",
    "Write a Python function that adds two numbers.", "What is recursion?",
]  # fmt: skip


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_greedy_tokens_equal_transformers(smollm2: str) -> None:
    """100 greedy tokens of each prompt, weights in float32.

    Checked by one forward of transformers over prompt and output: if at every position its argmax is the next token,
    its own greedy decoding gives the same tokens, by induction.
    """
    done: dict[int, octavo.Completion] = {}
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)

    async def one(client: AsyncClient, i: int) -> None:
        done[i] = await client.generate(chat(QUESTIONS[i]), params)

    options = EngineOptions(dtype="float32", quantization="none")
    async with AsyncClient(smollm2, options) as client, anyio.create_task_group() as group:
        for i in range(len(QUESTIONS)):
            group.start_soon(one, client, i)
    model = transformers_smollm2()
    for i, result in sorted(done.items()):
        assert len(result.token_ids) == 100
        prompt, output = list(result.prompt_token_ids), list(result.token_ids)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == output, QUESTIONS[i]


@pytest.fixture(scope="module")
def stored(smollm2: str) -> Iterator[str]:
    """The address of an engine with the weights as stored: 4 bits, the head 8."""
    with running(smollm2, EngineOptions(seed=1)) as address:
        yield address


async def test_it_answers(stored: str) -> None:
    async with await AsyncClient.connect(stored) as client:
        params = SamplingParams(temperature=0, max_tokens=40)
        done = await client.generate(chat(QUESTIONS[0]), params)
        assert "Paris" in done.text
        assert done.finish_reason == "stop"
        assert done.usage.completion_tokens == len(done.token_ids)
        deltas = [delta async for delta in client.stream(chat(QUESTIONS[0]), params)]
        assert "".join(delta.text for delta in deltas) == done.text
        assert [token for delta in deltas for token in delta.token_ids] == list(done.token_ids)
        assert deltas[-1].finish_reason == "stop"
        assert (await client.generate(list(done.prompt_token_ids), params)).text == done.text

        three = await client.generate(
            chat("Tell me a story."), SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=20)
        )
        assert len({choice.text for choice in three.choices}) == 3
        again = await client.generate(
            chat("Tell me a story."), SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=20)
        )
        assert [c.text for c in again.choices] == [c.text for c in three.choices]

        stopped = await client.generate(chat(QUESTIONS[0]), SamplingParams(temperature=0, max_tokens=40, stop="Par"))
        assert stopped.finish_reason == "stop"
        assert stopped.choices[0].stop_reason == "Par"
        assert "Par" not in stopped.text

        wide = await client.generate("The", SamplingParams(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=2))
        assert wide.choices[0].logprobs is not None
        assert all(entry.rank == 1 and entry.token_id == entry.top[0][0] for entry in wide.choices[0].logprobs)
        assert wide.choices[0].cumulative_logprob == pytest.approx(sum(e.logprob for e in wide.choices[0].logprobs))
        assert wide.prompt_logprobs is not None
        assert len(wide.prompt_logprobs) == len(wide.prompt_token_ids)


async def test_sampling_parameters(stored: str) -> None:
    async with await AsyncClient.connect(stored) as client:
        base = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
        plain = await client.generate("Once upon a time", SamplingParams(**base))
        first = plain.token_ids[0]
        banned = await client.generate("Once upon a time", SamplingParams(**base, logit_bias={first: -100.0}))
        assert first not in banned.token_ids[:1]
        only = await client.generate("Once upon a time", SamplingParams(**base, allowed_token_ids=[50, 60, 70]))
        assert set(only.token_ids) <= {50, 60, 70}
        held = await client.generate("Once upon a time", SamplingParams(**base, stop_token_ids=[first], min_tokens=4))
        assert first not in held.token_ids[:4]
        word = plain.text.split()[0]
        without = await client.generate("Once upon a time", SamplingParams(**base, bad_words=[word]))
        assert word not in without.text.split()
        apart = await client.generate("a a a a a a", SamplingParams(**base, repetition_penalty=10.0))
        assert len(set(apart.token_ids)) == len(apart.token_ids)


async def test_bad_requests_fail_alone(stored: str) -> None:
    async with await AsyncClient.connect(stored) as client:
        with pytest.raises(octavo.PromptTooLong, match="max_model_len"):
            await client.generate([5] * 9000)
        with pytest.raises(octavo.InvalidRequest, match="vocabulary"):
            await client.generate([10**6])
        with pytest.raises(octavo.InvalidOption, match="top_p"):
            await client.generate("x", SamplingParams(top_p=3))
        with pytest.raises(octavo.RequestTimeout) as caught:
            await client.generate("x", SamplingParams(max_tokens=2000, ignore_eos=True, total_timeout=1.0))
        assert caught.value.which == "total"
        assert caught.value.partial.text
        big = "word " * 1_000_000  # 5 MB: tokenised off the step loop
        with pytest.raises(octavo.PromptTooLong):
            await client.generate(big)
