"""How much of the KV cache's allocated pages stores no token, and that choices share their prompt's pages."""

from __future__ import annotations

import asyncio
import random
from statistics import mean
from typing import Any

from octavo import AsyncClient, EngineOptions, SamplingParams
from tests.bench.models import MODELS, model_path
from tests.bench.workload import Case, prompts

__all__ = ["kv_memory", "print_kv_memory"]

_STREAMS, _REQUESTS = 64, 128
_PROMPT, _OUTPUT = (32, 512), (32, 256)
_SHARED_PROMPT, _CHOICES = 256, 4


async def kv_memory(model: str) -> dict[str, Any]:
    """Waste while 64 requests of mixed lengths run, and the pages of one request with n=4."""
    async with AsyncClient(model_path(model), EngineOptions(dtype="bfloat16", max_model_len=1024)) as client:
        return {"model": model, "mixed": await _mixed(client, model), "shared": await _shared(client, model)}


async def _mixed(client: AsyncClient, model: str) -> dict[str, float]:
    """Mean and worst waste over the samples that saw all 64 running; whoever ends makes room for another."""
    draw = random.Random(0)
    places = asyncio.Semaphore(_STREAMS)

    async def one(number: int) -> None:
        prompt = prompts(Case(1, draw.randint(*_PROMPT), 1), MODELS[model].vocab, f"mixed {number}")[0]
        params = SamplingParams(max_tokens=draw.randint(*_OUTPUT), temperature=0.0, ignore_eos=True)
        async with places:
            await client.generate(prompt, params)

    samples = await _sampled(client, asyncio.gather(*map(one, range(_REQUESTS))))
    full = [s for s in samples if s["num_requests_running"] == _STREAMS]
    if not full:
        raise RuntimeError(f"none of {len(samples)} samples saw {_STREAMS} requests at once")
    waste = [1 - s["kv_slots_used"] / s["kv_slots_allocated"] for s in full]
    return {"samples": len(full), "mean_waste": mean(waste), "worst_waste": max(waste)}


async def _shared(client: AsyncClient, model: str) -> dict[str, float]:
    """Most pages held by one request with n choices, beside what n separate requests would hold."""
    size = client.ready.options.page_size
    prompt = prompts(Case(1, _SHARED_PROMPT, 1), MODELS[model].vocab, "shared")[0]
    params = SamplingParams(n=_CHOICES, max_tokens=64, temperature=1.0, seed=1, ignore_eos=True)
    task = asyncio.ensure_future(client.generate(prompt, params))
    samples = await _sampled(client, task)
    held = max(s["kv_slots_allocated"] for s in samples) / size
    separate = _CHOICES * -(-(_SHARED_PROMPT + 64) // size)
    return {"choices": _CHOICES, "prompt_pages": _SHARED_PROMPT // size, "held_pages": held, "separate_pages": separate}


async def _sampled(client: AsyncClient, work: asyncio.Future[Any]) -> list[dict[str, float]]:
    """The engine's stats, asked again and again until `work` is done; each answer comes between two steps."""
    samples = []
    while not work.done():
        samples.append(await client.stats())
        await asyncio.sleep(0.005)
    await work
    return samples


def print_kv_memory(result: dict[str, Any]) -> None:
    """Two lines; PagedAttention (arXiv 2309.06180) wastes under 4 %."""
    mixed, shared = result["mixed"], result["shared"]
    print(
        f"\nKV cache, {_STREAMS} requests at once, prompts of {_PROMPT[0]} to {_PROMPT[1]} and outputs of "
        f"{_OUTPUT[0]} to {_OUTPUT[1]} tokens: {mixed['mean_waste']:.2%} of the allocated slots store nothing "
        f"(at worst {mixed['worst_waste']:.2%}, {mixed['samples']} samples)"
    )
    print(
        f"KV cache, one request with n={shared['choices']}: {shared['held_pages']:.0f} pages at most, its prompt's "
        f"{shared['prompt_pages']} counted once; separate requests would hold {shared['separate_pages']}"
    )
