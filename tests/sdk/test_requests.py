"""generate, stream, chat, abort and stats against the fake engine, on the three loops."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest

import octavo
from octavo import SamplingParams
from tests.sdk.conftest import until

pytestmark = pytest.mark.anyio


async def test_generate(client: octavo.AsyncClient) -> None:
    done = await client.generate("words 3", SamplingParams(max_tokens=3))
    assert isinstance(done, octavo.Completion)
    assert (done.text, done.token_ids, done.finish_reason) == ("w0 w1 w2 ", (0, 1, 2), "length")
    assert done.prompt_token_ids == (1, 2, 3)
    assert done.usage.completion_tokens == 3
    assert [choice.index for choice in done.choices] == [0]


async def test_stream(client: octavo.AsyncClient) -> None:
    stream = client.stream("words 5")
    deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == "w0 w1 w2 w3 w4 "
    assert [token for delta in deltas for token in delta.token_ids] == [0, 1, 2, 3, 4]
    assert deltas[-1].finish_reason == "length"
    assert stream.usage is not None
    assert stream.prompt_token_ids == (1, 2, 3)
    assert [delta async for delta in stream] == []


async def test_prompts_of_every_kind(client: octavo.AsyncClient) -> None:
    assert (await client.generate("ünï")).text == "ünï"
    assert (await client.generate([4, 5])).text == "4 5"
    assert (await client.generate((4, 5))).text == "4 5"
    assert (await client.generate(range(3))).text == "0 1 2"
    chat = [{"role": "user", "content": "hi"}, octavo.Message("assistant", "yes?")]
    assert (await client.generate(chat)).text == "user:hi|assistant:yes?"
    assert (await client.chat(chat)).text == "user:hi|assistant:yes?"
    async for delta in client.stream(chat):
        assert delta.text == "user:hi|assistant:yes?"


class Index:
    def __index__(self) -> int:
        return 9


async def test_integers_of_other_libraries(client: octavo.AsyncClient) -> None:
    assert (await client.generate([Index(), 1])).text == "9 1"  # type: ignore[list-item]


@pytest.mark.parametrize(
    "prompt",
    [
        b"bytes",
        None,
        5,
        {"role": "user", "content": "x"},
        [True, 2],
        [1.5],
        ["a"],
        [-1],
        [1 << 40],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        "\ud800",
    ],
)
async def test_what_is_no_prompt_is_refused_at_once(client: octavo.AsyncClient, prompt: Any) -> None:
    with pytest.raises(octavo.InvalidRequest):
        await client.generate(prompt)
    with pytest.raises(octavo.InvalidRequest):
        client.stream(prompt)
    assert (await client.stats())["requests"] == 0


async def test_wrong_params_are_refused(client: octavo.AsyncClient) -> None:
    with pytest.raises(octavo.InvalidRequest, match="SamplingParams"):
        await client.generate("x", {"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(octavo.InvalidRequest, match="64 bits"):
        await client.generate("x", octavo.SamplingParams(total_timeout=1 << 70))
    assert (await client.stats())["requests"] == 0
    with pytest.raises(octavo.InvalidRequest):
        await client.chat([])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", octavo.InvalidRequest),
        ("prompt_too_long", octavo.PromptTooLong),
        ("overloaded", octavo.Overloaded),
        ("draining", octavo.Overloaded),
        ("failed", octavo.RequestFailed),
        ("out_of_memory", octavo.OutOfMemory),
        ("timeout", octavo.RequestTimeout),
    ],
)
async def test_failures_are_typed(client: octavo.AsyncClient, code: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"as asked: {code}") as caught:
        await client.generate(f"fail {code}")
    assert type(caught.value) is kind
    texts: list[str] = []

    async def read() -> None:
        async for delta in client.stream(f"fail {code} partial"):
            texts.append(delta.text)

    with pytest.raises(kind):
        await read()
    assert "".join(texts) == "w0 w1 "


async def test_a_timeout_keeps_the_partial_text(client: octavo.AsyncClient) -> None:
    with pytest.raises(octavo.RequestTimeout) as caught:
        await client.generate("fail timeout partial")
    assert caught.value.which == "first_token"
    assert caught.value.partial.text == "w0 w1 "
    assert caught.value.partial.finish_reason == "abort"
    with pytest.raises(octavo.RequestTimeout) as caught:
        await client.generate("fail timeout")
    assert caught.value.partial is None


async def test_a_break_aborts(client: octavo.AsyncClient) -> None:
    async for _ in client.stream("forever"):
        break
    assert (await client.stats())["aborted"] == 1


async def test_an_exception_aborts(client: octavo.AsyncClient) -> None:
    async def read() -> None:
        async for _ in client.stream("forever"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()
    assert (await client.stats())["aborted"] == 1


async def test_leaving_async_with_aborts(client: octavo.AsyncClient) -> None:
    async with client.stream("forever") as stream:
        await anext(stream)
    await stream.aclose()
    assert [delta async for delta in stream] == []
    assert (await client.stats())["aborted"] == 1


async def test_a_timeout_of_the_reader_aborts(client: octavo.AsyncClient) -> None:
    with anyio.move_on_after(0.05):
        async for _ in client.stream("nothing"):
            pass
    assert (await client.stats())["aborted"] == 1


async def test_a_timed_out_wait_ends_the_stream(client: octavo.AsyncClient) -> None:
    stream = client.stream("nothing")
    with anyio.move_on_after(0.01):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert (await client.stats())["aborted"] == 1


async def test_garbage_collection_aborts(client: octavo.AsyncClient) -> None:
    stream = client.stream("forever")
    del stream
    assert (await client.stats())["aborted"] == 1
    cycle: list[Any] = [client.stream("forever")]
    cycle.append(cycle)
    del cycle
    gc.collect()
    await until(client, aborted=2, running=0)


async def test_collection_in_another_thread_aborts(client: octavo.AsyncClient) -> None:
    box = [client.stream("forever")]
    await anyio.to_thread.run_sync(box.clear)
    await until(client, aborted=1, running=0)


async def test_cancelling_generate_aborts(client: octavo.AsyncClient) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(client.generate, "forever")
        await until(client, running=20)
        group.cancel_scope.cancel()
    stats = await client.stats()
    assert (stats["aborted"], stats["running"]) == (20, 0)


async def test_abort_ends_streams_and_calls_in_good_order(client: octavo.AsyncClient) -> None:
    stream = client.stream("forever")
    await anext(stream)
    await client.abort(stream)
    assert [delta async for delta in stream][-1].finish_reason == "abort"
    results: list[octavo.Completion] = []

    async def call() -> None:
        results.append(await client.generate("forever"))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await until(client, running=3)
        await client.abort()
    assert [done.finish_reason for done in results] == ["abort"] * 3


async def test_aborting_what_has_ended_is_nothing(client: octavo.AsyncClient) -> None:
    stream = client.stream("words 1")
    assert len([delta async for delta in stream]) == 1
    await client.abort(stream)
    await stream.aclose()
    assert (await client.stats())["aborted"] == 0


async def test_a_slow_reader_gets_everything_merged(client: octavo.AsyncClient) -> None:
    stream = client.stream("words 5000")
    await until(client, requests=1)  # all deltas came before this answer
    deltas = [delta async for delta in stream]
    assert len(deltas) < 10
    assert [token for delta in deltas for token in delta.token_ids] == list(range(5000))
    assert "".join(delta.text for delta in deltas) == "".join(f"w{i} " for i in range(5000))
    assert deltas[-1].finish_reason == "length"


async def test_a_stalled_reader_holds_up_nobody(client: octavo.AsyncClient) -> None:
    stalled = client.stream("forever")
    for _ in range(20):
        assert (await client.generate("words 50")).usage.completion_tokens == 50
    await stalled.aclose()


async def test_one_reader_a_stream(client: octavo.AsyncClient) -> None:
    stream = client.stream("nothing")
    async with anyio.create_task_group() as group:
        group.start_soon(anext, stream)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="one reader"):
            await anext(stream)
        group.cancel_scope.cancel()


async def test_many_streams_at_once(client: octavo.AsyncClient) -> None:
    texts: dict[int, str] = {}

    async def read(number: int) -> None:
        texts[number] = "".join([delta.text async for delta in client.stream(f"words {number}")])

    async with anyio.create_task_group() as group:
        for number in range(1, 200):
            group.start_soon(read, number)
    assert texts == {n: "".join(f"w{i} " for i in range(n)) for n in range(1, 200)}


async def test_stats_and_health(client: octavo.AsyncClient) -> None:
    assert (await client.stats())["hellos"] >= 1
    await client.health()
