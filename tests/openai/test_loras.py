"""Adapters over HTTP, against a scripted engine; that they are in the answers, tests/e2e/test_adapters.py shows."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from octavo import EngineOptions
from octavo.openai import create_app
from octavo.testing import ScriptedEngine
from tests.openai.conftest import CHAT, events

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> ScriptedEngine:
    return ScriptedEngine(default="yes", options=EngineOptions(model="models/toy", enable_lora=True))


@pytest.fixture
async def http(engine: ScriptedEngine) -> Any:
    async with engine.client() as client:
        transport = httpx.ASGITransport(create_app(client), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


async def test_an_adapter_is_a_model(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    load = {"lora_name": "sql", "lora_path": "/adapters/sql"}
    card = (await http.post("/v1/load_lora_adapter", json=load)).json()
    assert (card["id"], card["parent"], card["root"]) == ("sql", "toy", "/adapters/sql")
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["toy", "sql"]
    assert (await http.get("/v1/models/sql")).json() == card
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/embeddings", {"input": "Hello"}),
    ):
        for model in ("sql", "toy"):
            answer = await http.post(path, json={**body, "model": model})
            assert answer.status_code == 200
            assert answer.json()["model"] == model
    streamed = events(await http.post("/v1/chat/completions", json={**CHAT, "model": "sql", "stream": True}))
    assert streamed[0]["model"] == "sql"
    events(await http.post("/v1/completions", json={"prompt": "Hello", "model": "sql", "stream": True}))
    echoed = {"prompt": "Hello", "model": "sql", "stream": True, "echo": True, "logprobs": 1}
    events(await http.post("/v1/completions", json=echoed))  # the prompt's logprobs are a request of their own
    assert [request.lora for request in engine.requests] == ["sql", None] * 3 + ["sql"] * 4

    gone = (await http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})).json()
    assert gone == {"id": "sql", "object": "model", "deleted": True}
    assert (await http.post("/v1/chat/completions", json={**CHAT, "model": "sql"})).status_code == 404
    assert (await http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})).status_code == 404


@pytest.mark.parametrize(
    "body", [{"lora_name": "toy", "lora_path": "/x"}, {"lora_name": "a"}, {"lora_name": 3, "lora_path": "/x"}]
)
async def test_what_is_refused(body: dict[str, Any], http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/load_lora_adapter", json=body)).status_code == 400
