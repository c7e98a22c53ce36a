"""Many streams at once; the engine batches them.    python examples/many_streams.py MODEL [asyncio|trio]"""

import sys

import anyio

from octavo import AsyncClient, SamplingParams

TOPICS = ["rivers", "bread", "the moon", "lighthouses", "prime numbers", "glass", "rust", "Lisbon"]


async def tell(client: AsyncClient, topic: str, answers: dict[str, str]) -> None:
    question = [{"role": "user", "content": f"One sentence about {topic}, please."}]
    answers[topic] = ""
    async for delta in client.stream(question, SamplingParams(temperature=0, max_tokens=40)):
        answers[topic] += delta.text


async def main(model: str) -> None:
    answers: dict[str, str] = {}
    async with AsyncClient(model) as client:
        async with anyio.create_task_group() as group:
            for topic in TOPICS:
                group.start_soon(tell, client, topic, answers)
        stats = await client.stats()
    for topic, answer in answers.items():
        print(f"{topic}: {answer}")
    print(f"{stats['generation_tokens']:.0f} tokens for {len(answers)} streams")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[2] if len(sys.argv) > 2 else "asyncio")
