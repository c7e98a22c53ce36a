"""The app in memory, over a scripted engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from octavo import EngineOptions
from octavo.openai import create_app
from octavo.testing import Reply, ScriptedEngine
from tests.openai.serving import serving
from tests.support.checkpoints import real_model

SCRIPT: dict[str, Reply | str] = {
    "Hello": "Hi there, friend!",
    "one": "1",
    "two": "2",
    "full": Reply(fail="overloaded", message="4096 requests are waiting"),
    "long": Reply(fail="prompt_too_long", message="9000 tokens; max_model_len=8192"),
    "late": Reply(fail="timeout", message="total_timeout=1 s passed"),
    "broken": Reply(fail="failed", message="the model failed on this request"),
    "halfway": Reply("some words", fail="failed", message="the model failed on this request"),
    "slow": Reply("a b", delay=0.3),
    "hang": Reply("a", hang=True),
    "dies": Reply(die=True),
}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def served(
    script: Any = SCRIPT, *, chat_template: str | None = None, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedEngine]]:
    """An HTTP client of the app, and the engine behind it."""
    model = EngineOptions(model="models/toy")
    engine = ScriptedEngine(script, default="anything", options=model, chat_template=chat_template)
    async with engine.client() as client:
        transport = httpx.ASGITransport(create_app(client, **options), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http, engine


def events(response: httpx.Response, titled: bool = False) -> list[Any]:
    """The JSON of a stream's events, which must end in [DONE], or each have its type as a title."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    if titled:
        titles, found = zip(*(line.split("\ndata: ", 1) for line in lines), strict=True)
        bodies = [json.loads(data) for data in found]
        assert [f"event: {body['type']}" for body in bodies] == list(titles)
        assert [body["sequence_number"] for body in bodies] == list(range(len(bodies)))
        return bodies
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture(scope="session")
def smollm2() -> str:
    return str(real_model())


@pytest.fixture(scope="session")
def server(smollm2: str) -> Iterator[str]:
    """The address of one `octavo serve` with SmolLM2, for all that ask a real one."""
    with serving(smollm2) as (address, _):
        yield address
