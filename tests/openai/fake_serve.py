"""`octavo serve` over tests/sdk's fake engine: its options as on the command line."""

from __future__ import annotations

import argparse
import sys

import anyio

from octavo import AsyncClient, OctavoError
from octavo.openai.serve import listen, serve
from octavo.serving import add_arguments, options_of
from tests.sdk.conftest import FAKE_ENGINE


async def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = options_of(parser.parse_args())
    command = [sys.executable, str(FAKE_ENGINE)]
    with listen(options) as listening:
        async with AsyncClient("fake", share=options.workers > 1, _command=command) as client:
            await serve(client, options, listening)


if __name__ == "__main__":
    try:
        anyio.run(main)
    except OctavoError as error:
        raise SystemExit(f"octavo: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
