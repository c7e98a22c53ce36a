"""Embeddings, scores and chat templates through real engines."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest
import torch

from octavo import AsyncClient, EngineOptions, InvalidOption, InvalidRequest, PromptTooLong, SamplingParams

pytestmark = pytest.mark.anyio

SMALL = EngineOptions(kv_cache_memory=1 << 20, max_num_seqs=8, max_num_batched_tokens=64, num_threads=2)
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def prompts(count: int, longest: int) -> list[list[int]]:
    draw = random.Random(count)
    return [[draw.randrange(128) for _ in range(draw.randint(1, longest))] for _ in range(count)]


async def test_embeddings_equal_transformers_and_depend_on_the_text_alone(tiny: Path) -> None:
    """In chunks, side by side and beside requests that are answered; nothing is left behind."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    asked = prompts(20, 200)
    async with AsyncClient(tiny, SMALL) as client:
        assert client.ready.embedding_size == 32
        async with anyio.create_task_group() as tasks:
            for prompt in prompts(6, 100):
                tasks.start_soon(client.generate, prompt, SamplingParams(max_tokens=40, ignore_eos=True))
            means = await client.embed(asked)
            lasts = await client.embed(asked, pooling="last", normalize=False)
        for prompt, mean, last in zip(asked, means, lasts, strict=True):
            with torch.inference_mode():
                hidden = model.model(torch.tensor([prompt])).last_hidden_state[0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
            torch.testing.assert_close(torch.frombuffer(mean, dtype=torch.float32), expected, atol=2e-6, rtol=1e-4)
            torch.testing.assert_close(torch.frombuffer(last, dtype=torch.float32), hidden[-1], atol=2e-5, rtol=1e-4)
        for i in (3, 11):  # alone; the second time a prefix of the last-pooled one is found again
            assert (await client.embed(asked[i])).vectors[0] == means[i]
            again = await client.embed(asked[i], pooling="last", normalize=False)
            assert again.vectors[0] == lasts[i]
            assert again.usage.cached_tokens == (len(asked[i]) - 1) // 16 * 16
        assert means.usage.prompt_tokens == sum(map(len, asked))
        assert means.usage.cached_tokens == 0
        short = await client.embed(asked[3], dimensions=8, normalize=False)
        assert len(short[0]) == 8
        whole = await client.embed(asked[3], normalize=False)
        assert short[0] == whole[0][:8]
        assert len(await client.embed([])) == 0
        stats = await client.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]
        with pytest.raises(InvalidRequest, match="dimensions=33: this model's embeddings have 1 to 32"):
            await client.embed([[1], [2]], dimensions=33)
        with pytest.raises(InvalidOption, match="'mean' or 'last'"):
            await client.embed([1], pooling="cls")  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="dimensions=0"):
            await client.embed([1], dimensions=0)
        with pytest.raises(InvalidRequest, match="inputs: each is"):
            await client.embed([[1], 2])  # type: ignore[list-item]
        with pytest.raises(InvalidRequest, match="at least one"):
            await client.embed([[1], []])
        with pytest.raises(PromptTooLong, match="513 tokens, more than max_model_len=512"):
            await client.embed([1] * 513)
        assert len(await client.embed([1] * 512)) == 1


async def test_scores_equal_transformers(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompt, endings = prompts(1, 400)[0] + [5] * 100, prompts(7, 30)
    async with AsyncClient(tiny, SMALL) as client:
        scores = await client.score(prompt, endings)
        reads = await client.stats()
        with pytest.raises(InvalidRequest, match="adds no token"):
            await client.score(prompt, [[]])
        with pytest.raises(InvalidRequest, match="at least one token is needed before"):
            await client.score([], [[1]])
        with pytest.raises(InvalidRequest, match="continued by token ids"):
            await client.score([1], ["text"])
        assert (await client.stats())["kv_pages_free"] == reads["kv_pages_total"]
    assert reads["prefix_cache_hits"] > 6 * (len(prompt) - 17)  # the prompt was run once
    for ending, score in zip(endings, scores, strict=True):
        with torch.inference_mode():
            logprobs = model(torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
        expected = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(ending)]
        assert score.token_ids == tuple(ending)
        assert score.logprobs == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert score.logprob == pytest.approx(sum(expected), rel=1e-3)
        assert score.mean_logprob == pytest.approx(sum(expected) / len(ending), rel=1e-3)


@pytest.mark.slow
async def test_what_a_real_model_makes_of_texts(smollm2: str) -> None:
    texts = [
        "The cat sleeps on the warm sofa.",
        "A kitten is napping on the couch.",
        "The central bank raised interest rates by half a percent.",
    ]
    async with AsyncClient(smollm2, EngineOptions(max_model_len=512, max_num_seqs=8)) as client:
        cat, kitten, bank = (await client.embed(texts)).vectors
        near, far = (sum(x * y for x, y in zip(cat, other, strict=True)) for other in (kitten, bank))
        assert near > far + 0.05

        paris, rome = await client.score("The capital of France is", [" Paris", " Rome"])
        assert paris.logprob > rome.logprob + 1
        paris, rome = await client.score(CHAT, ["The capital of France is Paris.", "The capital of France is Rome."])
        assert paris.logprob > rome.logprob

        text = await client.apply_chat_template(CHAT)
        assert text.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
        ids = await client.apply_chat_template(CHAT, tokenize=True)
        assert ids == await client.tokenize(text, special=False) == await client.tokenize(CHAT)
        told = await client.apply_chat_template(CHAT, add_generation_prompt=False)
        assert text == told + "<|im_start|>assistant\n"
        assert (
            await client.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=False)
            == ids[: -len(await client.tokenize("<|im_start|>assistant\n", special=False))]
        )
        long = [{"role": "user", "content": "sea " * 4000}]  # another thread takes it
        assert (await client.apply_chat_template(long)).count("sea ") == 4000
