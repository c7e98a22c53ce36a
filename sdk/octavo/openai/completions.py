"""POST /v1/completions: one or several prompts, each with n choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from octavo.openai.chat import finish
from octavo.openai.events import EventStream, Write, until_gone
from octavo.openai.usage import total, usage_of
from octavo.options import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.openai.app import Server
    from octavo.openai.fields import CompletionRequest
    from octavo.results import Completion, CompletionChoice, TokenLogprob, Usage

__all__ = ["completions"]


async def completions(server: Server, http: Request, request: CompletionRequest) -> Response:
    prompts, params = request.prompts(), request.params()
    head = server.head("cmpl", "text_completion", request.model)
    if request.stream:

        async def produce(write: Write) -> None:
            await _stream(server, request, prompts, head, write)

        return EventStream(produce, server.keep_alive)
    done: list[Completion | None] = [None] * len(prompts)

    async def one(i: int) -> None:
        watch = server.metrics.watch()
        done[i] = result = await server.client.generate(prompts[i], params, lora=server.lora(request.model))
        watch.finished(result.usage)

    await until_gone(http, lambda: _all(one, len(prompts)))
    finished = [result for result in done if result is not None]
    choices: list[dict[str, Any]] = []
    for prompt, result in zip(prompts, finished, strict=True):
        for choice in result.choices:
            choices.append(await _choice(server, request, prompt, result, choice, len(choices)))
    return server.json({**head, "choices": choices, "usage": usage_of(total(r.usage for r in finished))})


async def _all(work: Callable[[int], Awaitable[None]], count: int) -> None:
    """Side by side; the first failure ends them all and comes out as it is."""
    failures: list[Exception] = []

    async def guarded(i: int, scope: anyio.CancelScope) -> None:
        try:
            await work(i)
        except Exception as error:
            failures.append(error)
            scope.cancel()

    async with anyio.create_task_group() as tasks:
        for i in range(count):
            tasks.start_soon(guarded, i, tasks.cancel_scope)
    if failures:
        raise failures[0]


async def _choice(
    server: Server,
    request: CompletionRequest,
    prompt: str | list[int],
    result: Completion,
    choice: CompletionChoice,
    index: int,
) -> dict[str, Any]:
    text, ids = choice.text, choice.token_ids
    entries: tuple[TokenLogprob | None, ...] | None = choice.logprobs
    if request.max_tokens == 0:
        text, ids, entries = "", (), None if entries is None else ()
    if request.echo:
        text = await _echoed(server, prompt) + text
        if entries is not None:
            ids, entries = (*result.prompt_token_ids, *ids), (*(result.prompt_logprobs or ()), *entries)
    logprobs = None if entries is None else (await server.pieces.legacy(ids, entries, 0))[0]
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "length" if request.max_tokens == 0 else finish(choice.finish_reason),
        "stop_reason": choice.stop_reason,
    }


async def _echoed(server: Server, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else await server.client.detokenize(prompt)


async def _stream(
    server: Server, request: CompletionRequest, prompts: list[Any], head: dict[str, Any], write: Write
) -> None:
    usage: dict[str, Any] = {"usage": None} if request.include_usage else {}
    params = request.params()
    usages: list[Usage] = []

    async def one(i: int) -> None:
        offsets: dict[int, int] = {}
        first = i * params.n

        async def send(index: int, text: str, logprobs: Any = None, reason: str | None = None, **more: Any) -> None:
            choice = {"index": first + index, "text": text, "logprobs": logprobs, "finish_reason": reason, **more}
            await write({**head, "choices": [choice], **usage})

        scored = None
        if request.echo and request.logprobs is not None:
            # The prompt's logprobs come with a request's end: a short one is made for them. Its pages are found again.
            asked = SamplingParams(max_tokens=1, prompt_logprobs=request.logprobs, priority=params.priority)
            scored = await server.client.generate(prompts[i], asked, lora=server.lora(request.model))
        watch = server.metrics.watch()
        async with server.client.stream(prompts[i], params, lora=server.lora(request.model)) as deltas:
            async for delta in deltas:
                watch.tokens(len(delta.token_ids))
                if request.echo and delta.index not in offsets:
                    echoed, offsets[delta.index] = None, 0
                    if scored is not None:
                        ids, entries = scored.prompt_token_ids, scored.prompt_logprobs or ()
                        echoed, offsets[delta.index] = await server.pieces.legacy(ids, entries, 0)
                    await send(delta.index, await _echoed(server, prompts[i]), echoed)
                text = "" if request.max_tokens == 0 else delta.text
                logprobs = None
                if delta.logprobs is not None:
                    before = offsets.get(delta.index, 0)
                    logprobs, offsets[delta.index] = await server.pieces.legacy(delta.token_ids, delta.logprobs, before)
                if delta.finish_reason is not None:
                    reason = "length" if request.max_tokens == 0 else finish(delta.finish_reason)
                    await send(delta.index, text, logprobs, reason, stop_reason=delta.stop_reason)
                elif text or logprobs:
                    await send(delta.index, text, logprobs)
        assert deltas.usage is not None
        watch.finished(deltas.usage)
        usages.append(deltas.usage)

    await _all(one, len(prompts))
    if request.include_usage:
        await write({**head, "choices": [], "usage": usage_of(total(usages))})
