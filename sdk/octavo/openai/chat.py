"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.openai.events import EventStream, Write, until_gone
from octavo.openai.usage import usage_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.openai.app import Server
    from octavo.openai.fields import ChatRequest

__all__ = ["chat"]


async def chat(server: Server, http: Request, request: ChatRequest) -> Response:
    messages, params = request.prompt(), request.params()
    kind = "chat.completion.chunk" if request.stream else "chat.completion"
    head = server.head("chatcmpl", kind, request.model)
    if request.stream:

        async def produce(write: Write) -> None:
            await _stream(server, request, messages, head, write)

        return EventStream(produce, server.keep_alive)
    watch = server.metrics.watch()
    done = await until_gone(http, lambda: server.client.generate(messages, params, lora=server.lora(request.model)))
    watch.finished(done.usage)
    choices = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []},
            "logprobs": await server.pieces.chat(choice.logprobs),
            "finish_reason": finish(choice.finish_reason),
            "stop_reason": choice.stop_reason,
        }
        for choice in done.choices
    ]
    return server.json({**head, "choices": choices, "usage": usage_of(done.usage)})


async def _stream(server: Server, request: ChatRequest, messages: Any, head: dict[str, Any], write: Write) -> None:
    usage: dict[str, Any] = {"usage": None} if request.include_usage else {}
    begun: set[int] = set()

    async def send(index: int, delta: dict[str, Any], logprobs: Any = None, **end: Any) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None, **end}
        await write({**head, "choices": [choice], **usage})

    watch = server.metrics.watch()
    lora = server.lora(request.model)
    async with server.client.stream(messages, request.params(), lora=lora) as deltas:
        async for delta in deltas:
            watch.tokens(len(delta.token_ids))
            if delta.index not in begun:
                begun.add(delta.index)
                await send(delta.index, {"role": "assistant", "content": "", "refusal": None})
            if delta.text or delta.logprobs:
                await send(delta.index, {"content": delta.text}, await server.pieces.chat(delta.logprobs))
            if delta.finish_reason is not None:
                reason = finish(delta.finish_reason)
                await send(delta.index, {}, finish_reason=reason, stop_reason=delta.stop_reason)
    assert deltas.usage is not None
    watch.finished(deltas.usage)
    if request.include_usage:
        await write({**head, "choices": [], "usage": usage_of(deltas.usage)})


def finish(reason: str) -> str:
    """OpenAI knows no "abort": what an operator cut off has stopped."""
    return "length" if reason == "length" else "stop"
