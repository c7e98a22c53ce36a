"""Leaving a stream, deadlines, errors by type.    python examples/cancel_and_timeouts.py MODEL"""

import asyncio
import sys

import octavo
from octavo import AsyncClient, SamplingParams

LONG = SamplingParams(max_tokens=2000, ignore_eos=True, temperature=0)


async def main(model: str) -> None:
    async with AsyncClient(model) as client:
        # Leaving the loop aborts the request: its pages are free by the engine's next step.
        text = ""
        async for delta in client.stream("Count to a million: one, two,", LONG):
            text += delta.text
            if len(text) > 40:
                break
        print(f"left after {len(text)} characters")

        # So does anything that cancels the task, here a timeout of the host's own.
        try:
            async with asyncio.timeout(0.5):
                await client.generate("Count to a million: one, two,", LONG)
        except TimeoutError:
            print("the host's timeout")

        # A deadline of the request itself keeps what had been generated.
        try:
            await client.generate("Count to a million: one, two,", octavo.options.replace(LONG, total_timeout=0.5))
        except octavo.RequestTimeout as error:
            print(f"the request's {error.which} timeout, with {len(error.partial.token_ids)} tokens to keep")

        # What can't work is refused at once, by type, and nothing else is disturbed.
        try:
            await client.generate([1] * 1_000_000)
        except octavo.PromptTooLong as error:
            print(error)
        print(f"running at the end: {(await client.stats())['num_requests_running']:.0f}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
