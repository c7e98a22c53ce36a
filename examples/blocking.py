"""From code that is not async (a script, Flask, Django): the client lives on an event loop in its own thread, and any
other thread calls it and waits.    python examples/blocking.py MODEL"""

import sys
from concurrent.futures import ThreadPoolExecutor

from anyio.from_thread import start_blocking_portal

from octavo import AsyncClient, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=24)


def main(model: str) -> None:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(AsyncClient(model)) as client:

        def ask(question: str) -> str:
            return portal.call(client.chat, [{"role": "user", "content": question}], PARAMS).text

        print(ask("What is the capital of France?"))

        with ThreadPoolExecutor(4) as threads:  # what they ask at once is batched
            for answer in threads.map(ask, ["Name a colour.", "Name an animal.", "Name a river.", "Name a fruit."]):
                print("-", answer)

        stream = portal.call(client.stream, "Once upon a time", PARAMS)
        while (delta := portal.call(anext, stream, None)) is not None:
            print(delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1])
