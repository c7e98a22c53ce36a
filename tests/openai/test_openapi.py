"""The OpenAPI document, and schemathesis' requests by it: whatever they hold, the server is never at fault."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import anyio
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from octavo import EngineOptions
from octavo.openai import create_app
from octavo.openai.openapi import document
from octavo.testing import Reply, ScriptedEngine
from tests.openai.conftest import served


class Running:
    """The app over a scripted engine on a port, in a thread."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=anyio.run, args=(self._main,))

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    async def _main(self) -> None:
        engine = ScriptedEngine(default=Reply("Well: yes."), options=EngineOptions(model="toy"))
        async with engine.client() as client:
            config = uvicorn.Config(create_app(client), lifespan="off", log_level="error")
            self._server = uvicorn.Server(config)
            self._server.install_signal_handlers = lambda: None
            await self._server.serve(sockets=[self._socket])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Running() as running:
        yield running.address


SCHEMA = schemathesis.openapi.from_dict(document("1", keys=False))


@SCHEMA.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_no_request_is_the_server_s_fault(case: schemathesis.Case, address: str) -> None:
    if isinstance(case.body, dict):
        case.body["model"] = "toy"
    case.call_and_validate(
        base_url=address, checks=[not_a_server_error, content_type_conformance, response_schema_conformance]
    )


@pytest.mark.anyio
async def test_the_document_tells_of_every_route() -> None:
    async with served() as (http, _):
        found = (await http.get("/openapi.json")).json()
        app = http._transport.app  # type: ignore[attr-defined]
        routes = {route.path.replace("{model:path}", "{id}") for route in app.routes if route.include_in_schema}
    assert set(found["paths"]) == routes - {"/openapi.json"}
    assert "security" not in found
    assert document("1", keys=True)["security"] == [{"key": []}]
    fields = found["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "tools", "temperature", "top_k", "response_format"} <= set(fields)
