"""SmolLM2 at temperature 1: whatever ended by itself fits what was asked, alone, in a crowd and after a preemption."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import jsonschema
import openai.types as published
import pytest
from openai.types import batch, chat, fine_tuning, responses

import octavo
from octavo import AsyncClient, Choice, EngineOptions, Grammar, JsonObject, JsonSchema, Regex, SamplingParams

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# What pydantic writes of classes that people use: references, unions, discriminators, nullable and literal fields.
PUBLISHED = [
    published.Model, published.FileObject, published.CompletionUsage, published.ModelDeleted, published.Moderation,
    published.ImagesResponse, published.Upload, batch.Batch, chat.ChatCompletionMessage,
    chat.ChatCompletionTokenLogprob, chat.ChatCompletionMessageFunctionToolCall, fine_tuning.FineTuningJobEvent,
    responses.ResponseUsage, responses.ResponseFunctionToolCall, responses.ResponseOutputText, responses.FunctionTool,
]  # fmt: skip
WRITTEN: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,12}$"},
            "email": {"type": "string", "format": "email", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "height": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 2.5},
            "roles": {"type": "array", "items": {"enum": ["admin", "user", "größer"]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "email", "age", "height", "roles"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "expression": {
                "anyOf": [
                    {"type": "integer", "minimum": -9, "maximum": 9},
                    {
                        "type": "object",
                        "properties": {
                            "op": {"enum": ["+", "*"]},
                            "left": {"$ref": "#/$defs/expression"},
                            "right": {"$ref": "#/$defs/expression"},
                        },
                        "required": ["op", "left", "right"],
                        "additionalProperties": False,
                    },
                ]
            }
        },
        "$ref": "#/$defs/expression",
    },
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "x"}, {"type": "null"}], "items": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 4},
    {"type": "string", "format": "date-time"},
    {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}]},
]
SCHEMAS = [model.model_json_schema() for model in PUBLISHED] + WRITTEN
QUESTION = [{"role": "user", "content": "Give me an example."}]


@pytest.fixture
async def client(smollm2: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(smollm2, EngineOptions(seed=5)) as client:
        yield client


async def at_once(client: AsyncClient, asked: list[SamplingParams]) -> list[octavo.Completion]:
    done: dict[int, octavo.Completion] = {}

    async def one(i: int) -> None:
        done[i] = await client.generate(QUESTION, asked[i])

    async with anyio.create_task_group() as group:
        for i in range(len(asked)):
            group.start_soon(one, i)
    return [done[i] for i in range(len(asked))]


async def test_every_output_that_ended_fits(client: AsyncClient) -> None:
    schemas = [JsonSchema(schema) for schema in SCHEMAS]
    results = await at_once(client, [SamplingParams(structured=s, max_tokens=160, seed=3) for s in schemas])
    ended = 0
    for schema, result in zip(SCHEMAS, results, strict=True):
        if result.finish_reason == "stop":
            ended += 1
            value = json.loads(result.text)
            jsonschema.validators.validator_for(schema)(schema).validate(value)
    assert ended >= len(SCHEMAS) // 2

    kinds: list[tuple[octavo.options.Structured, str]] = [
        (Regex(r"[A-Z][a-z]+ [A-Z][a-z]+, \d{4}-\d{2}-\d{2}"), r"[A-Z][a-z]+ [A-Z][a-z]+, [0-9]{4}-[0-9]{2}-[0-9]{2}"),
        (Regex("(yes|no)!{1,3}"), "(yes|no)!{1,3}"),
        (Choice(["Paris", "Rome", "Zürich 😀"]), "Paris|Rome|Zürich 😀"),
        (Grammar('root ::= item (", " item)*\nitem ::= "a" [0-9]{1,2} | "b"'), "(a[0-9]{1,2}|b)(, (a[0-9]{1,2}|b))*"),
        (JsonObject(), r"(?s)\{.*\}"),
    ]
    results = await at_once(client, [SamplingParams(structured=s, max_tokens=60, n=4, seed=3) for s, _ in kinds])
    for (_, pattern), result in zip(kinds, results, strict=True):
        texts = [choice.text for choice in result.choices if choice.finish_reason == "stop"]
        assert all(re.fullmatch(pattern, text) for text in texts), texts
        assert texts or isinstance(kinds[-1][0], JsonObject)

    with pytest.raises(octavo.InvalidGrammar, match="unclosed group"):
        await client.generate(QUESTION, SamplingParams(structured=Regex("(a")))
    stats = await client.stats()
    assert stats["grammars_compiled"] == len(SCHEMAS) + len(kinds)
    assert stats["kv_pages_free"] == stats["kv_pages_total"]


async def test_law_6_with_grammars(smollm2: str) -> None:
    """The same tokens and logprobs alone, all at once, and where there is so little room that some have to give way."""
    asked = [SamplingParams(structured=JsonSchema(WRITTEN[i % 2]), max_tokens=40, seed=i, logprobs=1) for i in range(6)]

    def essence(done: octavo.Completion) -> Any:
        return done.text, [(e.token_id, e.logprob, e.top) for e in done.choices[0].logprobs or ()]

    async with AsyncClient(smollm2) as client:
        alone = [essence((await at_once(client, [params]))[0]) for params in asked]
        assert [essence(done) for done in await at_once(client, asked)] == alone
        assert client.options.kv_cache_memory is not None
        ten_pages = client.options.kv_cache_memory // client.ready.num_pages * 10
    async with AsyncClient(smollm2, EngineOptions(kv_cache_memory=ten_pages, max_model_len=128)) as client:
        assert [essence(done) for done in await at_once(client, asked)] == alone
        assert (await client.stats())["num_preemptions"] > 0
