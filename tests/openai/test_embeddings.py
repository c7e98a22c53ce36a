"""/v1/embeddings against a scripted engine; what it embeds is tested in tests/e2e/test_reading.py and test_real.py."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import pytest

from octavo import wire
from octavo.testing import Reply
from tests.openai.conftest import served

pytestmark = pytest.mark.anyio

SCRIPT: dict[str, Reply | str] = {
    "a cat": Reply(embedding=[0.6, 0.8, 0.0]),
    "a dog": Reply(embedding=[0.0, 0.25, 1.0]),
    "full": Reply(fail="overloaded", message="4096 requests are waiting"),
}


async def test_texts_in_both_encodings() -> None:
    async with served(SCRIPT) as (http, engine):
        body = {"model": "toy", "input": ["a cat", "a dog"]}
        answer = (await http.post("/v1/embeddings", json=body)).json()
        assert answer["object"] == "list"
        assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
        assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0), ("embedding", 1)]
        assert answer["data"][1]["embedding"] == [0.0, 0.25, 1.0]
        encoded = (
            await http.post("/v1/embeddings", json={**body, "encoding_format": "base64", "dimensions": 2})
        ).json()
        vector = array("f", base64.b64decode(encoded["data"][1]["embedding"]))
        assert vector.tolist() == [0.0, 0.25]
        assert engine.requests[0].task == wire.Embed("mean", True, None)
        ours = {"model": "toy", "input": [[1, 2], [3]], "pooling": "last", "normalize": False}
        assert len((await http.post("/v1/embeddings", json=ours)).json()["data"]) == 2
        assert engine.requests[-1].task == wire.Embed("last", False, None)
        assert engine.requests[-1].token_ids == [3]
        assert len((await http.post("/v1/embeddings", json={**body, "input": [1, 2, 3]})).json()["data"]) == 1


@pytest.mark.parametrize(
    ("wrong", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": ["a cat", ""]}, 400, "input"),
        ({"input": ["a cat", [1]]}, 400, "input"),
        ({"input": ["a cat"] * 2049}, 400, "input"),
        ({"input": [[-1]]}, 400, None),
        ({"input": {"text": "a cat"}}, 400, "input"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"dimensions": 0}, 400, "dimensions"),
        ({"pooling": "cls"}, 400, "pooling"),
        ({"model": "other"}, 404, "model"),
        ({"input": ["a cat", "full"]}, 429, None),
    ],
)
async def test_what_is_refused(wrong: dict[str, Any], status: int, param: str | None) -> None:
    async with served(SCRIPT) as (http, _):
        answer = await http.post("/v1/embeddings", json={"model": "toy", "input": "a cat", **wrong})
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == param
