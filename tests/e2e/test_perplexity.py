"""Perplexity through a real engine against transformers' on the same windows, float32."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import AsyncClient, EngineOptions, InvalidRequest
from octavo.perplexity import perplexity

pytestmark = pytest.mark.anyio


def by_transformers(model: Any, tokens: list[int], context: int, stride: int) -> float:
    """The loop of Hugging Face's guide, with the token count exact: what was scored before is labelled -100."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + context, len(tokens))
        ids = torch.tensor([tokens[begin:end]])
        labels = ids.clone()
        labels[:, : previous - begin if begin else 0] = -100
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1]
        targets = labels[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
        count += int((targets != -100).sum())
        previous = end
        if end == len(tokens):
            break
    return math.exp(total / count)


async def test_tiny_model(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    draw = random.Random(32)
    tokens = [draw.randrange(128) for _ in range(203)]
    windows = [(32, 16), (32, 32), (50, 7), (400, 1)]
    options = EngineOptions(kv_cache_memory=8 << 20, max_num_seqs=8, max_num_batched_tokens=64, num_threads=1)
    async with AsyncClient(tiny, options) as client:
        made = [await perplexity(client, tokens, context=context, stride=stride) for context, stride in windows]
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            await client.tokenize("text")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for ours, (context, stride) in zip(made, windows, strict=True):
        expected = by_transformers(model, tokens, context, stride)
        assert ours.perplexity == pytest.approx(expected, rel=2e-5), (context, stride)


@pytest.mark.slow
async def test_smollm2(smollm2: str) -> None:
    from tests.support.oracle import transformers_smollm2

    text = Path(__file__).parents[2].joinpath("README.md").read_text()[:1600]
    options = EngineOptions(dtype="float32", quantization="none", max_model_len=1024, max_num_seqs=8)
    async with AsyncClient(smollm2, options) as client:
        tokens = await client.tokenize(text)
        made = await perplexity(client, tokens, context=256, stride=128)
    expected = by_transformers(transformers_smollm2(), tokens, 256, 128)
    assert made.perplexity == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
async def test_tokenize(smollm2: str) -> None:
    """Short texts and those that another thread takes (over 8,192 characters), beside requests that run."""
    async with AsyncClient(smollm2, EngineOptions(max_model_len=256, max_num_seqs=4)) as client:
        short = await client.tokenize("The sea is")
        done = await client.generate("The sea is")
        assert list(done.prompt_token_ids) == short
        assert await client.tokenize("") == []
        long = await client.tokenize("The sea is" * 1000)
        assert long == short * 1000
        assert await client.tokenize("x", special=False) == await client.tokenize("x")  # this model has no BOS
        with pytest.raises(InvalidRequest, match="not valid Unicode"):
            await client.tokenize("\ud800")
        with pytest.raises(InvalidRequest, match=r'messages\[0\]: a mapping with "role"'):
            await client.tokenize([1])  # type: ignore[list-item]
        with pytest.raises(InvalidRequest, match="a string or chat messages"):
            await client.tokenize(b"x")  # type: ignore[arg-type]
