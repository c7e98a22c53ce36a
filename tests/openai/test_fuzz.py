"""Whatever a request holds, it is answered or refused; nothing of it is our fault (a 5xx)."""

from __future__ import annotations

import json
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.openai.fields import ChatRequest, CompletionRequest
from octavo.openai.response_fields import ResponsesRequest
from octavo.testing import Reply
from tests.openai import strict
from tests.openai.conftest import events, served

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.integers(), st.floats(), st.text(max_size=5), st.just("toy")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "5", "include_usage"]), inner, max_size=3),
    ),
    max_leaves=6,
)
WHOLE: dict[str, Any] = {
    "/v1/chat/completions": strict.chat,
    "/v1/completions": strict.completion,
    "/v1/responses": strict.response,
}
PARTS: dict[str, Any] = {
    "/v1/chat/completions": strict.chunk,
    "/v1/completions": strict.completion_chunk,
    "/v1/responses": strict.response_event,
}
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", ""]), "content": st.text(max_size=5)}), max_size=2
)


def requests(kind: Any, required: dict[str, Any]) -> Any:
    required = {"model": st.just("toy"), **required}
    rest = {name: VALUES for name in kind.__struct_fields__ if name not in required}
    return st.fixed_dictionaries(required, optional=rest)


def refused_or_answered(path: str, body: Any, script: Any = None, *, refused: bool = True, **options: Any) -> None:
    async def main() -> None:
        async with served(script or {}, **options) as (http, _):
            answer = await http.post(path, content=json.dumps(body).encode())
            allowed = (200, 400, 404) if refused else (200,)
            assert answer.status_code in allowed, (answer.status_code, answer.text, body)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
            elif body.get("stream") is True:
                for event in events(answer, titled=path == "/v1/responses"):
                    if "error" not in event:
                        PARTS[path](event)
            else:
                WHOLE[path](answer.json())

    anyio.run(main)


@settings(max_examples=150)
@given(requests(ChatRequest, {"messages": st.one_of(MESSAGES, VALUES)}))
def test_chat(body: Any) -> None:
    refused_or_answered("/v1/chat/completions", body)


@settings(max_examples=150)
@given(requests(CompletionRequest, {"prompt": st.one_of(st.text(max_size=5), VALUES)}))
def test_completions(body: Any) -> None:
    refused_or_answered("/v1/completions", body)


@settings(max_examples=150)
@given(requests(ResponsesRequest, {"input": st.one_of(st.text(max_size=5), MESSAGES, VALUES)}))
def test_responses(body: Any) -> None:
    refused_or_answered("/v1/responses", body)


# Requests that are right, of which each field is as likely there as not: what comes back is OpenAI's to the letter.
WEATHER, NOW = ({"type": "function", "function": {"name": name}} for name in ("weather", "now"))
TOOLS = st.sampled_from([[WEATHER], [NOW], [WEATHER, NOW]])
ASKED = st.text(max_size=5).map(lambda text: [{"role": "user", "content": text}])
COMMON = {
    "model": st.just("toy"),
    "stream": st.booleans(),
    "temperature": st.sampled_from([0, 0.7, 2]),
    "top_p": st.sampled_from([0.1, 1]),
    "seed": st.integers(0, 9),
    "top_k": st.integers(0, 9),
    "user": st.text(max_size=3),
    "metadata": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    "store": st.booleans(),
    "parallel_tool_calls": st.booleans(),
}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": ASKED, "n": st.integers(1, 3), "max_completion_tokens": st.integers(1, 9),
        "logprobs": st.just(True), "tools": TOOLS, "tool_choice": st.sampled_from(["auto", "none"]),
        "reasoning_effort": st.sampled_from(["low", "none"]), "stop": st.lists(st.text(min_size=1), max_size=2),
    },
    "/v1/completions": {
        "prompt": st.one_of(st.text(max_size=5), st.lists(st.text(max_size=3), min_size=1, max_size=3)),
        "n": st.integers(1, 3), "max_tokens": st.integers(1, 9), "echo": st.booleans(),
    },
    "/v1/responses": {
        "input": st.one_of(st.text(max_size=5), ASKED), "instructions": st.text(max_size=5),
        "max_output_tokens": st.integers(1, 9), "include": st.just(["message.output_text.logprobs"]),
        "reasoning": st.just({"effort": "low"}), "truncation": st.just("disabled"),
        "tools": TOOLS.map(lambda tools: [{"type": "function", **tool["function"]} for tool in tools]),
        "text": st.just({"format": {"type": "text"}}),
    },
}  # fmt: skip
NEEDED = {"model", "messages", "prompt", "input"}
ANSWER = Reply(
    ["<think>", "Hm.</think>", "So:", "<tool_call>", '{"name": "now", "arguments"', ": {}}", "</tool_call>", " Done."]
)


@settings(max_examples=100)
@given(st.data())
def test_right_requests_are_answered_in_openai_s_types(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(REQUESTS)))
    fields = {**COMMON, **REQUESTS[path]}
    if path == "/v1/completions":
        del fields["parallel_tool_calls"], fields["store"], fields["metadata"]
    body = {name: data.draw(values) for name, values in fields.items() if name in NEEDED or data.draw(st.booleans())}
    refused_or_answered(path, body, lambda _: ANSWER, refused=False, chat_template="{{ tools }} <tool_call> </think>")
