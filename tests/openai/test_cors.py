"""Web pages of other origins."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from tests.openai.conftest import CHAT, served

pytestmark = pytest.mark.anyio
PAGE = "https://app.example.com"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_an_allowed_page_may_call_and_read_even_errors() -> None:
    async with served(api_keys=["secret"], allowed_origins=[PAGE]) as (http, _):
        asked = await http.options("/v1/chat/completions", headers=ASKS)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
        refused = await http.post("/v1/chat/completions", json=CHAT, headers={"origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        answer = await http.post(
            "/v1/chat/completions", json=CHAT, headers={"origin": PAGE, "authorization": "Bearer secret"}
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


async def test_others_may_not() -> None:
    async with served(allowed_origins=[PAGE]) as (http, _):
        stranger = {**ASKS, "origin": "https://evil.example.com"}
        assert (await http.options("/v1/chat/completions", headers=stranger)).status_code == 400
        answer = await http.post("/v1/chat/completions", json=CHAT, headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in answer.headers
    async with served() as (http, _):
        assert (await http.options("/v1/chat/completions", headers=ASKS)).status_code == 405
        answer = await http.post("/v1/chat/completions", json=CHAT, headers={"origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_methods_headers_and_credentials() -> None:
    narrow = {"allowed_methods": ["GET"], "allowed_headers": ["authorization"], "allow_credentials": True}
    async with served(allowed_origins=[PAGE], **narrow) as (http, _):
        assert (await http.options("/v1/models", headers=ASKS)).status_code == 400
        narrower = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
        asked = await http.options("/v1/models", headers={**ASKS, **narrower})
        assert (asked.status_code, asked.headers["access-control-allow-credentials"]) == (200, "true")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_origins", ["https://app.example.com/"]),
        ("allowed_origins", ["app.example.com"]),
        ("allowed_origins", "https://app.example.com"),
        ("allowed_origins", [7]),
        ("allowed_methods", ["PO ST"]),
        ("allowed_headers", [""]),
    ],
)
async def test_what_is_none(name: str, value: Any) -> None:
    with pytest.raises(octavo.InvalidOption, match=name):
        async with served(**{name: value}):
            pass
