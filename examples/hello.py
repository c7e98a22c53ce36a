"""Open an engine, ask it once, then stream.    python examples/hello.py MODEL"""

import asyncio
import sys

from octavo import AsyncClient, SamplingParams


async def main(model: str) -> None:
    async with AsyncClient(model) as client:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        done = await client.generate(question, SamplingParams(temperature=0, max_tokens=40))
        print(done.text)
        print(f"{done.usage.completion_tokens} tokens in {done.usage.total_seconds:.2f} s, {done.finish_reason}")

        async for delta in client.stream("Once upon a time", SamplingParams(max_tokens=40, seed=1)):
            print(delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
