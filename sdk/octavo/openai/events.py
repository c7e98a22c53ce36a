"""A server-sent event stream whose end is certain: the reader's going away cancels it, silence is filled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from octavo.openai.errors import answer_of, report

__all__ = ["EventStream", "Write", "until_gone"]

_encode = msgspec.json.encode
Write = Callable[[Any], Awaitable[None]]


async def until_gone(request: Request, work: Callable[[], Awaitable[Any]]) -> Any:
    """`work()`, cancelled when the caller of the request goes away. The body has been read before.

    Raises ClientDisconnect then.
    """
    result: list[Any] = []
    failure: Exception | None = None

    async def watch(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, tasks.cancel_scope)
        try:
            result.append(await work())
        except Exception as error:  # out as it is, not in the group's wrapping
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not result:
        raise ClientDisconnect
    return result[0]


class EventStream(Response):
    """produce(write) is run with `write(object)`, which sends one event of JSON, and ends in data: [DONE].
    titled: with the event's name, which is its member "type", and without that end, as /v1/responses has it.

    What it raises before the first event becomes a plain error answer, later an event that holds the error. A comment
    is sent whenever nothing else was for `keep_alive` seconds, so that no proxy closes what only waits.
    """

    media_type = "text/event-stream"

    def __init__(self, produce: Callable[[Write], Awaitable[None]], keep_alive: float, *, titled: bool = False) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._produce, self._keep_alive, self._titled = produce, keep_alive, titled
        self.named: Callable[[Exception], Exception] = lambda error: error  # what is told of an error
        self._lock = anyio.Lock()
        self._begun = self._wrote = self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            tasks.start_soon(self._fill_silence)
            try:
                await self._produce(self._write)
            except Exception as error:
                failure = self.named(error)
                report(scope["path"], failure)
            tasks.cancel_scope.cancel()
        if self._gone:
            return
        if failure is not None and not self._begun:
            status, body, headers = answer_of(failure)
            await JSONResponse(body, status, headers)(scope, receive, send)
            return
        if failure is not None:
            await self._write(answer_of(failure)[1])
        if not self._titled:
            await self._raw(b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        scope.cancel()

    async def _fill_silence(self) -> None:
        while True:
            self._wrote = False
            await anyio.sleep(self._keep_alive)
            if not self._wrote:
                await self._raw(b": keep-alive\n\n")

    async def _write(self, event: Any) -> None:
        name = b"event: " + event["type"].encode() + b"\n" if self._titled and "type" in event else b""
        await self._raw(name + b"data: " + _encode(event) + b"\n\n")

    async def _raw(self, chunk: bytes) -> None:
        self._wrote = True
        async with self._lock:
            if not self._begun:
                self._begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
