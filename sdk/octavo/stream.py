"""One request's output as an async iterator; leaving it in any way aborts the request."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from octavo import wire
from octavo.errors import (
    InvalidGrammar,
    InvalidRequest,
    LoraError,
    OctavoError,
    OutOfMemory,
    Overloaded,
    PromptTooLong,
    RequestFailed,
    RequestTimeout,
)
from octavo.results import Completion, CompletionChoice, Delta, Usage
from octavo.router import Request, Router, merge

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Stream", "completion", "end_of", "error_of"]


def error_of(failed: wire.Failed, partial: Completion | None = None) -> OctavoError:
    """The typed error of a request that the engine refused or could not finish."""
    match failed.code:
        case "invalid_request":
            return InvalidRequest(failed.message)
        case "unknown_lora":
            return LoraError(failed.message)
        case "invalid_grammar":
            return InvalidGrammar(failed.message)
        case "prompt_too_long":
            return PromptTooLong(failed.message)
        case "overloaded" | "draining":
            return Overloaded(failed.message)
        case "timeout":
            return RequestTimeout(failed.message, failed.which or "total", partial)
        case "out_of_memory":
            return OutOfMemory(failed.message)
    return RequestFailed(failed.message)


def completion(deltas: list[wire.Delta], end: wire.Finished | wire.Failed) -> Completion | None:
    """Everything that came, put together. None where a request failed before any token."""
    merged = {delta.index: delta for delta in merge(deltas)}
    if isinstance(end, wire.Finished):
        ends = {choice.index: choice for choice in end.choices}
    elif merged:
        ends = {}
    else:
        return None
    choices = []
    for index in sorted(merged.keys() | ends.keys()):
        delta = merged.get(index) or wire.Delta(end.request_id, index, "", ())
        closing = ends.get(index) or wire.Choice(index, delta.finish_reason or "abort", delta.stop_reason, None)
        choices.append(
            CompletionChoice(
                index,
                delta.text,
                delta.token_ids,
                closing.finish_reason,
                closing.stop_reason,
                delta.logprobs,
                closing.cumulative_logprob,
                closing.score,
            )
        )
    prompt_logprobs = end.prompt_logprobs if isinstance(end, wire.Finished) else None
    return Completion(tuple(choices), end.prompt_token_ids, end.usage or Usage(), prompt_logprobs)


async def end_of(router: Router, request: Request) -> wire.Finished:
    """Wait for it. Raises what it ended in; leaving forgets the request."""
    if request.outcome is None:
        request.waiter = waiter = router.loop.waiter()
        try:
            await waiter
        except BaseException:
            request.waiter = None
            router.forget(request)
            raise
    outcome = request.outcome
    if isinstance(outcome, wire.Finished):
        return outcome
    if isinstance(outcome, wire.Failed):
        raise error_of(outcome, completion(request.pending, outcome))
    assert outcome is not None
    raise outcome


class Stream:
    """Iterate over it for Deltas; it has one reader at a time. Made by `AsyncClient.stream`, running from then on.

    Ends when every choice has ended. Raises as `AsyncClient.generate` does; what came before was given already.
    Breaking out, an exception, a cancelled or timed-out wait, `aclose` and garbage collection all abort the request,
    and the stream is over then.
    """

    __slots__ = ("__weakref__", "_client", "_finished", "_left", "_open", "_request", "_router")

    def __init__(self, client: object, router: Router, request: Request, n: int) -> None:
        self._client = client  # a client that nobody else holds must live as long as its streams
        self._router = router
        self._request = request
        self._open = set(range(n))
        self._left = False
        self._finished: wire.Finished | None = None
        router.watch_reader(request, self)

    @property
    def request_id(self) -> int:
        return self._request.id

    @property
    def usage(self) -> Usage | None:
        """Tokens and times; None until the stream has ended by itself."""
        return self._finished.usage if self._finished is not None else None

    @property
    def prompt_token_ids(self) -> tuple[int, ...] | None:
        """None until the stream has ended by itself."""
        return self._finished.prompt_token_ids if self._finished is not None else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        request = self._request
        if self._left:
            raise StopAsyncIteration
        while not request.pending:
            if request.outcome is not None:
                return self._end(request.outcome)
            if request.waiter is not None:
                raise RuntimeError("another task is waiting for this stream's next delta; a stream has one reader")
            waiter = request.waiter = self._router.loop.waiter()
            try:
                await waiter
            except BaseException:
                request.waiter = None
                self._leave()
                raise
        pending = request.pending
        if len(pending) > 1:
            request.pending = pending = merge(pending)
        delta = pending.pop(0)
        if delta.finish_reason is not None:
            self._open.discard(delta.index)
        return Delta(delta.index, delta.text, delta.token_ids, delta.logprobs, delta.finish_reason, delta.stop_reason)

    def _end(self, outcome: wire.Finished | wire.Failed | OctavoError) -> Delta:
        if isinstance(outcome, wire.Finished):
            self._finished = outcome
            # A choice that was aborted may have ended without a last delta of its own.
            for choice in outcome.choices:
                if choice.index in self._open:
                    self._open.discard(choice.index)
                    return Delta(choice.index, "", (), None, choice.finish_reason, choice.stop_reason)
        self._left = True
        if isinstance(outcome, wire.Finished):
            raise StopAsyncIteration
        raise outcome if isinstance(outcome, OctavoError) else error_of(outcome)

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            self._request.pending = []
            self._router.forget(self._request)

    async def aclose(self) -> None:
        """Abort the request if it still runs. Idempotent, never blocks."""
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()
