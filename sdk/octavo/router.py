"""The one receiver: takes frames off the transport and gives each message to the request that waits for it.

Delivery never blocks. A delta goes to its request's list; only a reader that waits is woken. What a slow reader leaves
lying is merged, so that memory is bounded by the output itself and nothing is lost.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import wire
from octavo.errors import InvalidRequest, LoraError, OctavoError, ProtocolMismatch
from octavo.heartbeat import Heartbeat

if TYPE_CHECKING:
    from octavo.loop import Loop, Waiter
    from octavo.results import Delta
    from octavo.transport import Transport

__all__ = ["Request", "Router", "joined", "merge"]

# Frames are taken for at most this long before other tasks get their turn (seconds).
_TURN = 0.002
# Deltas a reader may leave lying before they are merged.
_MERGE_AT = 256
# The token of the heartbeat's StatsRequest; those of callers count from 1.
_HEARTBEAT = 0

Outcome = wire.Finished | wire.Failed | OctavoError
_Answer = wire.Stats | wire.Tokens | wire.Texts | wire.Loras


def merge(deltas: list[wire.Delta]) -> list[wire.Delta]:
    """The same output with one delta a choice, in the order in which the choices first appear."""
    by_index: dict[int, list[wire.Delta]] = {}
    for delta in deltas:
        by_index.setdefault(delta.index, []).append(delta)
    return [_merge_choice(parts) if len(parts) > 1 else parts[0] for parts in by_index.values()]


def _merge_choice(parts: list[wire.Delta]) -> wire.Delta:
    last = parts[-1]
    return wire.Delta(last.request_id, last.index, *joined(parts), last.finish_reason, last.stop_reason)


def joined(
    parts: Sequence[wire.Delta | Delta],
) -> tuple[str, tuple[int, ...], tuple[wire.TokenLogprob, ...] | None]:
    """Text, token ids and logprobs of one choice's deltas, put together."""
    logprobs = None
    if any(part.logprobs is not None for part in parts):
        logprobs = tuple(entry for part in parts for entry in part.logprobs or ())
    return "".join([part.text for part in parts]), tuple([id for part in parts for id in part.token_ids]), logprobs


def _frame(message: Any) -> bytes:
    try:
        return wire.encode([message])
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the request holds text that is not valid Unicode: {error}") from None
    except OverflowError as error:
        raise InvalidRequest(f"the request holds a number of more than 64 bits: {error}") from None
    except TypeError as error:
        raise InvalidRequest(f"the request holds what can't be sent: {error}") from None


class Request:
    """What the router knows of one request: what came and was not read yet, who waits, and how it ended."""

    __slots__ = ("every_delta", "handle", "id", "merge_at", "outcome", "pending", "waiter")

    def __init__(self, request_id: int, every_delta: bool) -> None:
        self.id = request_id
        self.every_delta = every_delta  # wake the reader at each delta, or at the end alone
        self.pending: list[wire.Delta] = []
        self.waiter: Waiter | None = None
        self.outcome: Outcome | None = None
        self.merge_at = _MERGE_AT
        self.handle: weakref.ref[Any] | None = None  # told when the reader is garbage-collected

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def compact(self) -> None:
        self.pending = merge(self.pending)
        self.merge_at = len(self.pending) + _MERGE_AT

    def end(self, outcome: Outcome) -> None:
        """The first outcome stands."""
        if self.outcome is None:
            self.outcome = outcome
            self.wake()


class Router:
    """Requests by id, over one transport. Everything runs in the loop's thread."""

    def __init__(self, transport: Transport, loop: Loop, heartbeat_timeout: float) -> None:
        self.loop = loop
        self.ready: wire.Ready | None = None
        self.dying: wire.Dying | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_dying: Callable[[], None] = lambda: None
        self.on_progress: Callable[[wire.Progress], None] = lambda progress: None
        self.on_silent: Callable[[], None] = lambda: None
        self.on_malformed: Callable[[str], None] = lambda why: self.fail_all(lambda: ProtocolMismatch(why))
        self._transport = transport
        self._requests: dict[int, Request] = {}
        self._left: deque[int] = deque()  # their readers were collected; the next send tells the engine
        self._asked: dict[int, tuple[Waiter, list[_Answer | OctavoError]]] = {}
        self._next_id = 0
        self._failure: Callable[[], OctavoError] | None = None
        self.heartbeat = Heartbeat(
            loop,
            heartbeat_timeout,
            ask=lambda: self.send(wire.StatsRequest(_HEARTBEAT)),
            look=self.receive,
            on_silent=lambda: self.on_silent(),
        )

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    # ---- out -------------------------------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """Raises InvalidRequest for what can't be encoded; nothing has been sent then."""
        frame = _frame(message)
        if self._left:
            self._abort_left()
        self._transport.send(frame)
        # A send may swallow the edge that would have announced what has come in.
        self.receive()

    def submit(self, every_delta: bool, make: Callable[[int], wire.Generate]) -> Request:
        """Send a new request. Raises the reason where no engine can take it."""
        if self._failure is not None:
            raise self._failure()
        self._next_id += 1
        request = Request(self._next_id, every_delta)
        self._requests[request.id] = request
        self.heartbeat.start()
        try:
            self.send(make(request.id))
        except BaseException:
            self._drop(request.id)
            raise
        return request

    def _drop(self, request_id: int) -> Request | None:
        request = self._requests.pop(request_id, None)
        self._rest_if_idle()
        return request

    def _rest_if_idle(self) -> None:
        if not self._requests and not self._asked:
            self.heartbeat.stop()

    def abort(self, ids: list[int]) -> None:
        """Ask the engine to end these; they stay known until it says so."""
        if ids and self._failure is None:
            self.send(wire.Abort(ids))

    def abort_all(self) -> None:
        self.abort(list(self._requests))

    def forget(self, request: Request) -> None:
        """Its reader has left: tell the engine at once, and drop what still comes. Idempotent."""
        if self._drop(request.id) is not None:
            self.abort([request.id])

    def watch_reader(self, request: Request, reader: object) -> None:
        """Forget the request as soon as its reader is garbage-collected."""
        request_id = request.id  # and not the request: it would keep itself alive in a cycle
        me = weakref.ref(self)

        # This runs inside the collector, perhaps in another thread and in the middle of anything: it only leaves word.
        def gone(_: Any) -> None:
            router = me()
            if router is not None:
                router._left.append(request_id)
                router.loop.soon(router._abort_left)

        request.handle = weakref.ref(reader, gone)

    def _abort_left(self) -> None:
        ids = []
        while self._left:
            if self._drop(request_id := self._left.popleft()) is not None:
                ids.append(request_id)
        self.abort(ids)

    async def stats(self) -> dict[str, float]:
        """The engine's figures, from its step loop. The caller sets the deadline."""
        answer = await self._ask(wire.StatsRequest)
        assert isinstance(answer, wire.Stats)
        return answer.values

    async def tokenize(
        self, text: str, special: bool, messages: list[wire.Message] | None, template: str | None
    ) -> list[int]:
        """Token ids of a text or a chat. Raises InvalidRequest where the engine can't tell."""
        answer = await self._ask(lambda request_id: wire.Tokenize(request_id, text, special, messages, template))
        assert isinstance(answer, wire.Tokens)
        if answer.error is not None:
            raise InvalidRequest(answer.error)
        return list(answer.token_ids)

    async def render(self, messages: list[wire.Message], template: str | None) -> str:
        """What the chat template makes of messages. Raises InvalidRequest where the engine can't tell."""
        texts = await self._texts(
            lambda request_id: wire.Tokenize(request_id, "", False, messages, template, render=True)
        )
        return texts[0]

    async def detokenize(self, token_ids: list[int], skip_special_tokens: bool, each: bool) -> tuple[str, ...]:
        """One text, or one a token. Raises InvalidRequest where the engine can't tell."""
        return await self._texts(lambda request_id: wire.Detokenize(request_id, token_ids, skip_special_tokens, each))

    async def _texts(self, make: Callable[[int], Any]) -> tuple[str, ...]:
        answer = await self._ask(make)
        assert isinstance(answer, wire.Texts)
        if answer.error is not None:
            raise InvalidRequest(answer.error)
        return answer.texts

    async def loras(self, make: Callable[[int], Any]) -> tuple[wire.LoraInfo, ...]:
        """Load, unload or list adapters: what is loaded then. Raises LoraError."""
        answer = await self._ask(make)
        assert isinstance(answer, wire.Loras)
        if answer.error is not None:
            raise LoraError(answer.error)
        return answer.loras

    async def _ask(self, make: Callable[[int], Any]) -> _Answer:
        """Send a question and wait for its one answer; the heartbeat sees to it that this ends."""
        if self._failure is not None:
            raise self._failure()
        self._next_id += 1
        number, waiter = self._next_id, self.loop.waiter()
        answer: list[_Answer | OctavoError] = []
        self._asked[number] = (waiter, answer)
        self.heartbeat.start()
        try:
            self.send(make(number))
            await waiter
        finally:
            self._asked.pop(number, None)
            self._rest_if_idle()
        if isinstance(answer[0], OctavoError):
            raise answer[0]
        return answer[0]

    # ---- in --------------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Take every frame there is, or as many as fit in one turn."""
        stop = time.perf_counter() + _TURN
        heartbeat = self.heartbeat
        while (frame := self._transport.receive()) is not None:
            heartbeat.heard = True
            try:
                messages = wire.decode_to_client(frame)
            except msgspec.DecodeError as error:
                # What it held is unknown, so some request would wait for ever.
                self.on_malformed(f"the engine sent a frame of {len(frame)} bytes that can't be read: {error}")
                return
            for message in messages:
                if type(message) is wire.Deltas:
                    self._deliver(message.deltas)
                else:
                    self._take(message)
            if time.perf_counter() > stop:
                self.loop.soon(self.receive)
                return

    def _deliver(self, deltas: list[wire.Delta]) -> None:
        requests = self._requests
        for delta in deltas:
            request = requests.get(delta.request_id)
            if request is None:  # its reader has left
                continue
            pending = request.pending
            pending.append(delta)
            if request.every_delta and (waiter := request.waiter) is not None:
                request.waiter = None
                if not waiter.done():
                    waiter.set_result(None)
            elif len(pending) >= request.merge_at:
                request.compact()

    def _take(self, message: Any) -> None:
        match message:
            case wire.Finished(request_id) | wire.Failed(request_id):
                request = self._drop(request_id)
                if request is not None:
                    request.end(message)
            case wire.Stats(number) if number == _HEARTBEAT:
                self.heartbeat.asked = False
            case wire.Stats(number) | wire.Tokens(number) | wire.Texts(number) | wire.Loras(number):
                if number in self._asked:
                    self._answer(number, message)
            case wire.Progress():
                self.on_progress(message)
            case wire.Ready():
                if self.ready is None:
                    self.ready = message
                    self.on_ready()
            case wire.Dying():
                self.dying = message
                self.on_dying()

    def _answer(self, number: int, answer: _Answer | OctavoError) -> None:
        waiter, box = self._asked.pop(number)
        self._rest_if_idle()
        box.append(answer)
        if not waiter.done():
            waiter.set_result(None)

    def fail_all(self, make: Callable[[], OctavoError]) -> None:
        """The engine is gone or left: all that waits, and all that is asked from now on, gets an error of its own."""
        if self._failure is None:
            self._failure = make
        self.fail_in_flight(self._failure)

    def fail_in_flight(self, make: Callable[[], OctavoError]) -> list[int]:
        """All that waits now gets an error of its own; what is asked from now on is none of this. Ids that ended."""
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.end(make())
        for number in list(self._asked):
            self._answer(number, make())
        self.heartbeat.stop()
        return list(requests)
