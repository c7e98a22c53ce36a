"""octavo through its AsyncClient: every prompt a stream of its own, tokens counted as they arrive."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from protocol import serve

from octavo import AsyncClient, EngineOptions, SamplingParams


class Octavo:
    """One event loop kept between runs; the engine process is spawned once. Variants: bf16, stored, a quantization."""

    def load(self, spec: dict[str, Any]) -> None:
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        weights = {"": "none", "bf16": "none", "stored": None, "int4": spec["octavo_int4"]}
        options = EngineOptions(
            dtype="bfloat16",
            quantization=weights.get(spec["variant"], spec["variant"]),
            num_threads=spec["threads"],
            max_model_len=spec["max_model_len"],
            kv_cache_memory=spec["cache_bytes"],
            ready_timeout=600.0,
        )
        self.client = AsyncClient(spec["octavo"], options)
        self.loop.run_until_complete(self.client.__aenter__())

    def run(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)

        async def one(prompt: list[int]) -> list[int]:
            tokens: list[int] = []
            async for delta in self.client.stream(prompt, params):
                tokens.extend(delta.token_ids)
            return tokens

        async def every() -> list[list[int]]:
            return list(await asyncio.gather(*map(one, prompts)))

        return self.loop.run_until_complete(every())


if __name__ == "__main__":
    serve(Octavo())
