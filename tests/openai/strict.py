"""Answers held to OpenAI's own types, strictly."""

from __future__ import annotations

from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

__all__ = ["assembled", "chat", "chunk", "chunks", "completion", "completion_chunk", "response", "response_event"]

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def chat(body: Any) -> ChatCompletion:
    return _strict(ChatCompletion, body)


def completion(body: Any) -> Completion:
    return _strict(Completion, body)


def completion_chunk(body: Any) -> Completion:
    """Until the end OpenAI's service says null for finish_reason, which its type does not know."""
    ended = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in body["choices"]]
    return completion({**body, "choices": ended})


def chunk(body: Any) -> ChatCompletionChunk:
    found: ChatCompletionChunk = _strict(ChatCompletionChunk, body)
    return found


def chunks(bodies: list[Any]) -> list[ChatCompletionChunk]:
    return [chunk(body) for body in bodies]


def response(body: Any) -> Response:
    found: Response = _strict(Response, body)
    return found


def response_event(body: Any) -> Any:
    return _EVENT.validate_python(body, strict=True)


def _strict(kind: Any, body: Any) -> Any:
    assert issubclass(kind, BaseModel)
    return kind.model_validate(body, strict=True)


def assembled(parts: list[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """The message that the chunks of a choice add up to, as a client puts it together, and how it ended."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for part in parts:
        for choice in part.choices:
            if choice.index != index:
                continue
            assert "finish_reason" not in message, "something came behind the end"
            message["content"] += choice.delta.content or ""
            message["reasoning_content"] += (choice.delta.model_extra or {}).get("reasoning_content", "")
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                if call.index == len(message["tool_calls"]):
                    assert call.id
                    assert call.type == "function"
                    message["tool_calls"].append({"name": call.function.name, "arguments": ""})
                else:
                    assert call.id is None
                    assert call.function.name is None
                message["tool_calls"][call.index]["arguments"] += call.function.arguments or ""
            if choice.finish_reason is not None:
                message["finish_reason"] = choice.finish_reason
    return message
