"""response_format, guided_* and structured_outputs: what they become, and errors that name the field."""

from __future__ import annotations

import re
from typing import Any

import pytest

from octavo.options import Choice, Grammar, JsonObject, JsonSchema, Regex, Structured
from octavo.testing import Reply
from tests.openai.conftest import CHAT, served

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def named(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}}


TAKEN: list[tuple[dict[str, Any], Structured | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_json": None}, None),
    ({"response_format": {"type": "json_object"}}, JsonObject()),
    (named(), JsonSchema(SCHEMA, strict=False)),
    (named(strict=True, description="of x"), JsonSchema(SCHEMA)),
    (named(None), JsonObject()),
    ({"guided_json": SCHEMA}, JsonSchema(SCHEMA)),
    ({"guided_json": '{"type": "null"}'}, JsonSchema('{"type": "null"}')),
    ({"guided_regex": "a+"}, Regex("a+")),
    ({"guided_choice": ["a", "b"], "guided_decoding_backend": "auto"}, Choice(["a", "b"])),
    ({"guided_grammar": 'root ::= "a"'}, Grammar('root ::= "a"')),
    ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(SCHEMA)),
    ({"structured_outputs": {"regex": "a+", "disable_any_whitespace": True}}, Regex("a+")),
    ({"structured_outputs": {"choice": ["a"]}}, Choice(["a"])),
    ({"structured_outputs": {"grammar": "start: x"}}, Grammar("start: x")),
    ({"structured_outputs": {"json_object": True}}, JsonObject()),
    ({"structured_outputs": {"json_object": False}}, None),
]


@pytest.mark.parametrize(("fields", "structured"), TAKEN)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_what_they_become(path: str, fields: dict[str, Any], structured: Structured | None) -> None:
    prompt = CHAT if path.startswith("chat") else {"model": "toy", "prompt": "one"}
    async with served() as (http, engine):
        answer = await http.post(f"/v1/{path}", json={**prompt, **fields})
        assert answer.status_code == 200, answer.text
        assert engine.requests[0].params.structured == structured


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "'xml'.*'text', 'json_object' or 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs json_schema"),
        ({"guided_json": "{"}, "guided_json", "JSON"),
        ({"guided_json": "[1]"}, "guided_json", "JSON object"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"guided_regex": ""}, "guided_regex", "non-empty"),
        ({"guided_grammar": " "}, "guided_grammar", "non-empty"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice", "non-empty"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag", "grammar"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "not beside guided_json"),
        ({**named(), "structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "not beside response_format"),
        ({**named(), "ignore_eos": True}, "ignore_eos", "False with structured"),
    ],
)
async def test_what_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    async with served() as (http, _):
        answer = await http.post("/v1/chat/completions", json={**CHAT, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert re.search(words, error["message"]), error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (named(), "response_format"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_the_engine_s_words_come_with_the_field(
    path: str, fields: dict[str, Any], param: str, stream: bool
) -> None:
    bad = Reply(fail="invalid_grammar", message="structured: unclosed group")
    prompt = CHAT if path.startswith("chat") else {"model": "toy", "prompt": "Hello"}
    async with served({"Hello": bad}) as (http, _):
        answer = await http.post(f"/v1/{path}", json={**prompt, **fields, "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert "unclosed group" in error["message"]
