"""All requests at their times, what each one saw, and what the client itself added."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import h11
import msgspec

from octavo.load.exchange import Answer, Target

__all__ = ["Load", "Overhead", "Record", "Spec", "drive"]

_TICK = 0.01


class Spec(msgspec.Struct, frozen=True):
    """One request: when it is due (seconds since the start), and what it says."""

    due: float
    path: str
    body: bytes


class Record(msgspec.Struct):
    """What one request saw. Times are seconds since the start; chunks: those of its pieces of text."""

    due: float
    sent: float = 0.0
    chunks: list[float] = []
    end: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None


class Overhead(msgspec.Struct, frozen=True):
    """late: how much after its time each request was sent, where nothing bounded it. lag: how late a timer of 10 ms
    fired, which is how late an arrival may have been seen. cpu: share of a core that the client took. Seconds."""

    late: list[float]
    lag: list[float]
    cpu: float


class Load(msgspec.Struct, frozen=True):
    records: list[Record]
    seconds: float
    overhead: Overhead


class _Chunk(msgspec.Struct):
    """What is read of a chunk, of either endpoint."""

    class Choice(msgspec.Struct):
        class Delta(msgspec.Struct):
            content: str | None = None

        delta: Delta | None = None
        text: str | None = None

    class Usage(msgspec.Struct):
        prompt_tokens: int = 0
        completion_tokens: int = 0

    class Error(msgspec.Struct):
        message: str = ""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Error | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_Counted = Callable[[int, int], None]


async def drive(
    target: Target, specs: list[Spec], concurrency: int | None, timeout: float, on_end: _Counted | None = None
) -> Load:
    """Send every request at its time; on_end is called with (done, failed) after each.

    With a bound on what is in flight a request may be sent later than it was due; it still counts from then.
    """
    records = [Record(spec.due) for spec in specs]
    lag: list[float] = []
    ended = [0, 0]
    places = anyio.CapacityLimiter(concurrency) if concurrency else None
    gc.collect()
    started, cpu = time.perf_counter(), time.process_time()

    async def one(spec: Spec, record: Record) -> None:
        async with AsyncExitStack() as stack:
            if places is not None:
                await stack.enter_async_context(places)
            await _ask(target, spec, record, started, timeout)
        ended[record.error is not None] += 1
        if on_end is not None:
            on_end(sum(ended), ended[1])

    async with anyio.create_task_group() as clock:
        clock.start_soon(_watch, lag)
        async with anyio.create_task_group() as tasks:
            for spec, record in zip(specs, records, strict=True):
                wait = started + spec.due - time.perf_counter()
                if wait > 0:
                    await anyio.sleep(wait)
                tasks.start_soon(one, spec, record)
        seconds = time.perf_counter() - started
        clock.cancel_scope.cancel()
    late = [] if concurrency else [record.sent - record.due for record in records]
    return Load(records, seconds, Overhead(late, lag, (time.process_time() - cpu) / seconds))


async def _watch(lag: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await anyio.sleep(_TICK)
        lag.append(time.perf_counter() - before - _TICK)


async def _ask(target: Target, spec: Spec, record: Record, started: float, timeout: float) -> None:
    record.chunks = []
    record.sent = time.perf_counter() - started
    try:
        with anyio.fail_after(timeout):
            async with Answer.to(target, "POST", spec.path, spec.body) as answer:
                if answer.status != 200 or not answer.streamed:
                    record.error = f"{answer.status} {(await answer.body())[:200].decode(errors='replace')}"
                else:
                    await _read(answer, record, started)
    except TimeoutError:
        record.error = f"no end within --timeout {timeout:g} s"
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream, h11.ProtocolError, msgspec.DecodeError) as error:
        record.error = f"{type(error).__name__}: {error}"
    record.end = time.perf_counter() - started


async def _read(answer: Answer, record: Record, started: float) -> None:
    record.error = "the answer ended without [DONE]"
    async for came, data in answer.events():
        if data == b"[DONE]":
            record.error = None
            break
        chunk = _chunk.decode(data)
        if chunk.error is not None:
            record.error = chunk.error.message
            break
        if chunk.usage is not None:
            record.prompt_tokens, record.tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.text or (choice.delta is not None and choice.delta.content):
                record.chunks.append(came - started)
    record.tokens = record.tokens or len(record.chunks)
