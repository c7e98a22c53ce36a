"""The same client on trio.    python examples/trio_hello.py MODEL"""

import sys

import trio

from octavo import AsyncClient, SamplingParams


async def main(model: str) -> None:
    async with AsyncClient(model) as client:
        with trio.move_on_after(30):
            async for delta in client.stream("The sea is", SamplingParams(temperature=0, max_tokens=30)):
                print(delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
