"""Whatever a request holds, it is answered or refused; nothing of it is our fault (a 5xx)."""

from __future__ import annotations

from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.openai.fields import ChatRequest, CompletionRequest
from tests.openai.conftest import served

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
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", ""]), "content": st.text(max_size=5)}), max_size=2
)


def requests(kind: Any, required: dict[str, Any]) -> Any:
    required = {"model": st.just("toy"), **required}
    rest = {name: VALUES for name in kind.__struct_fields__ if name not in required}
    return st.fixed_dictionaries(required, optional=rest)


def refused_or_answered(path: str, body: Any) -> None:
    async def main() -> None:
        async with served({}) as (http, _):
            import json

            answer = await http.post(path, content=json.dumps(body).encode())
            assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text, body)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]

    anyio.run(main)


@settings(max_examples=150, deadline=None)
@given(requests(ChatRequest, {"messages": st.one_of(MESSAGES, VALUES)}))
def test_chat(body: Any) -> None:
    refused_or_answered("/v1/chat/completions", body)


@settings(max_examples=150, deadline=None)
@given(requests(CompletionRequest, {"prompt": st.one_of(st.text(max_size=5), VALUES)}))
def test_completions(body: Any) -> None:
    refused_or_answered("/v1/completions", body)
