"""Routes, fields, errors, keys and limits, against a scripted engine."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as completion_create_params_of_chat
from openai.types.responses import response_create_params

from octavo.errors import EngineDead
from octavo.openai.errors import answer_of
from octavo.openai.fields import ChatRequest, CompletionRequest
from octavo.openai.response_fields import ResponsesRequest
from tests.openai.conftest import CHAT, events, served

pytestmark = pytest.mark.anyio


async def test_a_chat_completion_has_what_openai_s_has() -> None:
    async with served() as (http, engine):
        answer = await http.post("/v1/chat/completions", json={**CHAT, "n": 2, "temperature": 0.5, "seed": 7})
        body = answer.json()
        assert answer.status_code == 200
        assert body["object"] == "chat.completion"
        assert body["id"].startswith("chatcmpl-")
        assert body["model"] == "toy"
        for i, choice in enumerate(body["choices"]):
            assert choice["index"] == i
            assert choice["message"] == {
                "role": "assistant", "content": "Hi there, friend!", "refusal": None, "annotations": [],
            }  # fmt: skip
            assert choice["finish_reason"] == "stop"
        usage = body["usage"]
        assert usage["completion_tokens"] == 6
        assert usage["total_tokens"] == usage["prompt_tokens"] + 6
        params = engine.requests[0].params
        assert (params.n, params.temperature, params.seed, params.max_tokens) == (2, 0.5, 7, None)
        assert answer.headers["x-request-id"]


async def test_every_sampling_field_arrives() -> None:
    ours: dict[str, Any] = {
        "top_k": 5, "min_p": 0.1, "min_tokens": 1, "repetition_penalty": 1.2, "stop_token_ids": [7], "ignore_eos": True,
        "allowed_token_ids": [1, 7], "bad_words": ["x"], "include_stop_str_in_output": True,
        "skip_special_tokens": False, "priority": 3, "queue_timeout": 5.0, "first_token_timeout": 6.0,
        "total_timeout": 7.0, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": -0.5, "n": 2, "seed": 11,
        "temperature": 0.3, "logits_processors": {"ban": {"ids": [1]}},
    }  # fmt: skip
    more = {"stop": "END", "logit_bias": {"5": -100}, "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 3}
    async with served() as (http, engine):
        answer = await http.post("/v1/chat/completions", json={**CHAT, **ours, **more})
        assert answer.status_code == 200, answer.text
        params = engine.requests[0].params
    for name, value in ours.items():
        found = getattr(params, name)
        assert (list(found) if isinstance(found, tuple) else found) == value, name
    assert (params.stop, params.logit_bias, params.max_tokens, params.logprobs) == (("END",), {5: -100}, 9, 3)


async def test_a_streamed_chat_is_the_same_chat() -> None:
    async with served() as (http, _):
        request = {**CHAT, "stream": True, "n": 2, "stream_options": {"include_usage": True}}
        chunks = events(await http.post("/v1/chat/completions", json=request))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *parts, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    assert all(part["usage"] is None for part in parts)
    for i in range(2):
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Hi there, friend!"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]


async def test_completions_take_all_kinds_of_prompts() -> None:
    async with served() as (http, engine):
        for prompt, count in (("one", 1), (["one", "two"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)):
            answer = await http.post("/v1/completions", json={"model": "toy", "prompt": prompt, "n": 2})
            assert [choice["index"] for choice in answer.json()["choices"]] == list(range(2 * count))
        texts = [choice["text"] for choice in (await _complete(http, prompt=["one", "two"]))["choices"]]
        assert texts == ["1", "2"]
        assert engine.requests[0].params.max_tokens == 16  # OpenAI's default of this route
        for prompt, text in (("one", "one1"), ([4, 5], "<4> <5>anything")):
            assert (await _complete(http, prompt=prompt, echo=True))["choices"][0]["text"] == text
        assert (await http.post("/v1/completions", json={"model": "toy", "prompt": ["a", 1]})).status_code == 400
        scored = await _complete(http, prompt="one", echo=True, max_tokens=0)
        assert scored["choices"][0]["text"] == "one"
        chunks = events(
            await http.post("/v1/completions", json={"model": "toy", "prompt": ["one", "two"], "stream": True})
        )
        streamed = {
            i: "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == i) for i in (0, 1)
        }
        assert streamed == {0: "1", 1: "2"}


async def _complete(http: Any, **fields: Any) -> Any:
    answer = await http.post("/v1/completions", json={"model": "toy", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("full", 429, "rate_limit_exceeded"),
        ("long", 400, "context_length_exceeded"),
        ("late", 408, "total_timeout"),
        ("broken", 500, None),
        ("dies", 503, "engine_unavailable"),
    ],
)
async def test_errors_have_openai_s_envelope_streamed_or_not(prompt: str, status: int, code: str | None) -> None:
    for stream in (False, True):
        async with served() as (http, _):
            request = {"model": "toy", "messages": [{"role": "user", "content": prompt}], "stream": stream}
            answer = await http.post("/v1/chat/completions", json=request)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code)
            assert error["message"]
            assert set(error) == {"message", "type", "param", "code"}
            assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_an_error_behind_the_first_token_ends_the_stream() -> None:
    async with served() as (http, _):
        request = {"model": "toy", "messages": [{"role": "user", "content": "halfway"}], "stream": True}
        answer = await http.post("/v1/chat/completions", json=request)
        assert answer.status_code == 200
        assert events(answer)[-1]["error"]["message"] == "the model failed on this request"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"nonsense": 1}, "nonsense"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, "temperature"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ],
)
async def test_wrong_fields_are_named(change: dict[str, Any], param: str) -> None:
    async with served() as (http, engine):
        answer = await http.post("/v1/chat/completions", json={**CHAT, **change})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert not engine.requests


async def test_malformed_bodies_unknown_models_routes_and_methods() -> None:
    async with served(max_body_bytes=1000) as (http, _):
        for content in (b"{", b"[]", b"", b'{"model": 3}', b"\xff", b'{"model": "\xe9"}'):
            answer = await http.post("/v1/chat/completions", content=content)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"
        missing = await http.post("/v1/chat/completions", json={**CHAT, "model": "gpt-9"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert (await http.post("/v1/chat/completions", json={**CHAT, "user": "x" * 2000})).status_code == 413
        assert (await http.get("/v1/nothing")).json()["error"]["type"] == "invalid_request_error"
        assert (await http.get("/v1/completions")).status_code == 405


async def test_text_parts_are_joined() -> None:
    async with served() as (http, engine):
        parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
        await http.post("/v1/chat/completions", json={"model": "toy", "messages": [{"role": "user", "content": parts}]})
        assert engine.requests[0].messages is not None
        assert engine.requests[0].messages[0].content == "Hel\nlo"


async def test_hints_to_openai_s_service_are_taken() -> None:
    hints = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low", "reasoning_effort": "low",
        "parallel_tool_calls": True, "tool_choice": "none",
    }  # fmt: skip
    async with served() as (http, engine):
        answer = await http.post("/v1/chat/completions", json={**CHAT, **hints})
        assert answer.status_code == 200, answer.text
        assert engine.requests[0].template == '{"reasoning_effort":"low"}'


async def test_how_the_prompt_of_a_chat_ends_is_the_template_s_to_know() -> None:
    asked = {"continue_final_message": True, "add_generation_prompt": False, "chat_template_kwargs": {"a": 1}}
    async with served() as (http, engine):
        answer = await http.post("/v1/chat/completions", json={**CHAT, **asked})
        assert answer.status_code == 200, answer.text
        told = {"a": 1, "add_generation_prompt": False, "continue_final_message": True}
        assert msgspec.json.decode(engine.requests[0].template or "") == told


def test_every_field_of_openai_s_is_known() -> None:
    kinds = {
        ChatRequest: completion_create_params_of_chat.CompletionCreateParamsBase,
        CompletionRequest: completion_create_params.CompletionCreateParamsBase,
        ResponsesRequest: response_create_params.ResponseCreateParamsBase,
    }
    for ours, theirs in kinds.items():
        assert not {*theirs.__annotations__, "stream"} - set(ours.__struct_fields__)


async def test_an_unknown_field_is_refused_as_openai_does() -> None:
    async with served() as (http, _):
        error = (await http.post("/v1/chat/completions", json={**CHAT, "topp": 1})).json()["error"]
        assert (error["code"], error["param"]) == ("unknown_parameter", "topp")
        error = (await http.post("/v1/chat/completions", json={"model": "toy"})).json()["error"]
        assert (error["code"], error["param"]) == ("missing_required_parameter", "messages")


async def test_models_tokens_health_and_metrics() -> None:
    async with served(served_model_name=["first", "second"]) as (http, _):
        assert [m["id"] for m in (await http.get("/v1/models")).json()["data"]] == ["first", "second"]
        assert (await http.get("/v1/models/second")).json()["id"] == "second"
        assert (await http.get("/v1/models/third")).status_code == 404
        assert (await http.post("/tokenize", json={"prompt": "a b c"})).json()["tokens"] == [0, 1, 2]
        assert (await http.post("/tokenize", json={"messages": CHAT["messages"]})).json()["count"] == 1
        assert (await http.post("/tokenize", json={})).status_code == 400
        assert (await http.post("/detokenize", json={"tokens": [4, 5]})).json() == {"prompt": "<4> <5>"}
        assert (await http.get("/health")).json() == {"status": "ok"}
        await http.post("/v1/chat/completions", json={**CHAT, "model": "first"})
        text = (await http.get("/metrics")).text
        assert "octavo_num_requests_running 0.0" in text
        assert "octavo_e2e_request_latency_seconds_count 1.0" in text


def test_the_engine_s_log_is_not_for_callers() -> None:
    status, body, _ = answer_of(EngineDead("killed by SIGKILL; last stderr:\nINFO octavo.engine: a path"))
    assert (status, body["error"]["message"]) == (503, "killed by SIGKILL")


async def test_health_tells_of_a_dead_and_of_a_silent_engine() -> None:
    async with served(health_timeout=0.05) as (http, engine):
        engine.stop_answering()
        assert (await http.get("/health")).status_code == 503
    async with served() as (http, engine):
        engine.die()
        with anyio.fail_after(20):
            while (await http.get("/health")).status_code != 503:
                await anyio.sleep(0.01)


async def test_keys() -> None:
    async with served(api_keys=["secret", "other"]) as (http, engine):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert (await http.get("/metrics", headers=headers)).status_code == 401
        assert not engine.requests
        for key in ("secret", "other"):
            answer = await http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        assert (await http.get("/health")).status_code == 200
        answer = await http.get("/health", headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"


async def test_silence_is_filled() -> None:
    async with served(keep_alive=0.05) as (http, _):
        request = {"model": "toy", "messages": [{"role": "user", "content": "slow"}], "stream": True}
        answer = await http.post("/v1/chat/completions", json=request)
        assert ": keep-alive" in answer.text
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(answer)) == "a b"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_leaves_ends_its_request(stream: bool) -> None:
    """The ASGI messages of a disconnect, as a server sends them."""
    import json

    from octavo.openai import create_app
    from octavo.testing import Reply, ScriptedEngine

    engine = ScriptedEngine({"hang": Reply("a", hang=True)})
    body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hang"}], "stream": stream})
    left, sent = anyio.Event(), []
    messages = [{"type": "http.request", "body": body.encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b"",
        "root_path": "", "scheme": "http", "server": ("test", 80), "http_version": "1.1",
    }  # fmt: skip
    async with engine.client() as client, anyio.create_task_group() as tasks:
        tasks.start_soon(create_app(client), scope, receive, send)
        with anyio.fail_after(20):
            while not engine.requests:
                await anyio.sleep(0.01)
        left.set()
        with anyio.fail_after(20):
            while not engine.aborted:
                await anyio.sleep(0.01)
