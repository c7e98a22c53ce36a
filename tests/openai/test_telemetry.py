"""Request ids, the access log and spans: of every request, of no prompt."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.openai import telemetry
from octavo.testing import Reply
from tests.openai.conftest import CHAT, served

pytestmark = pytest.mark.anyio

SECRET = {"model": "toy", "messages": [{"role": "user", "content": "my secret"}]}
SCRIPT = {"my secret": "an answer", "broken": Reply(fail="failed")}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)  # the global one can be set only once
    return exporter


async def test_a_line_a_request_and_no_prompt_in_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo.access")
    async with served(SCRIPT) as (http, _):
        for stream in (False, True):
            answer = await http.post(
                "/v1/chat/completions?q=my+secret", json={**SECRET, "stream": stream}, headers={"x-request-id": "mine"}
            )
            assert answer.status_code == 200
        await http.get("/no%0Athing")
    lines = [record.getMessage() for record in caplog.records if record.name == "octavo.access"]
    assert len(lines) == 3
    assert [line.split()[1:4] for line in lines] == [["POST", "/v1/chat/completions", "200"]] * 2 + [
        ["GET", "/no\\nthing", "404"]
    ]
    assert all(line.endswith(" mine") for line in lines[:2])
    assert not any("secret" in line or "answer" in line for line in lines)


@pytest.mark.parametrize("given", ["a b", "x" * 200, "é"])
async def test_request_ids_that_are_none_are_replaced(given: str) -> None:
    async with served() as (http, _):
        answer = await http.get("/health", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("stream", [False, True])
async def test_a_span_a_request(spans: InMemorySpanExporter, stream: bool) -> None:
    async with served(SCRIPT) as (http, _):
        headers = {"traceparent": PARENT}
        await http.post("/v1/chat/completions", json={**SECRET, "stream": stream}, headers=headers)
        broken: Any = {**CHAT, "messages": [{"role": "user", "content": "broken"}]}
        await http.post("/v1/chat/completions", json=broken)
    good, bad = spans.get_finished_spans()
    assert (good.name, good.kind) == ("POST /v1/chat/completions", trace.SpanKind.SERVER)
    assert good.parent is not None
    assert f"{good.parent.trace_id:032x}" == PARENT.split("-")[1]
    assert good.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "toy",
        "gen_ai.system": "octavo",
        "gen_ai.usage.input_tokens": 0,
        "gen_ai.usage.output_tokens": 2,
    }
    assert bad.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in good.to_json() + bad.to_json()


async def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "trace", None)
    async with served(SCRIPT) as (http, _):
        assert (await http.post("/v1/chat/completions", json=SECRET)).status_code == 200
