"""octavo.testing: the scripted engine that users test with."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import pytest_asyncio

import octavo
from octavo import wire
from octavo.testing import Reply, ScriptedEngine


@pytest.mark.anyio
async def test_replies(anyio_backend: Any) -> None:
    engine = ScriptedEngine({"Hello": "Hi there, you!", "pieces": Reply(["a", "", "b"])}, default="what?")
    async with engine.client() as client:
        assert (await client.generate("Hello")).text == "Hi there, you!"
        assert [delta.text async for delta in client.stream("Hello")] == ["Hi", " there,", " you!"]
        assert [delta.text async for delta in client.stream("pieces")] == ["a", "", "b"]
        assert (await client.chat([{"role": "user", "content": "Hello"}])).text == "Hi there, you!"
        assert (await client.generate("else")).text == "what?"
        two = await client.generate("Hello", octavo.SamplingParams(n=2, max_tokens=2))
        assert [choice.text for choice in two.choices] == ["Hi there,"] * 2
        assert two.finish_reason == "length"
        assert two.usage.completion_tokens == 4
    assert [request.text for request in engine.requests[:2]] == ["Hello", "Hello"]


@pytest.mark.anyio
async def test_failures(anyio_backend: Any) -> None:
    script = {
        "busy": Reply(fail="overloaded", message="try later"),
        "late": Reply("one two", fail="timeout"),
        "dead": Reply("one", die=True),
    }
    async with ScriptedEngine(script).client() as client:
        with pytest.raises(octavo.InvalidRequest, match="no answer"):
            await client.generate("unknown")
        with pytest.raises(octavo.Overloaded, match="try later"):
            await client.generate("busy")
        with pytest.raises(octavo.RequestTimeout) as caught:
            await client.generate("late")
        assert caught.value.partial.text == "one two"
        with pytest.raises(octavo.EngineDead):
            await client.generate("dead")
        with pytest.raises(octavo.EngineDead):
            await client.stats()


@pytest.mark.anyio
async def test_a_function_answers_and_a_reader_leaves(anyio_backend: Any) -> None:
    def answer(request: wire.Generate) -> Reply:
        return Reply(f"{request.token_ids} tokens", hang=True)

    engine = ScriptedEngine(answer)
    async with engine.client() as client:
        async for delta in client.stream([1, 2]):
            assert delta.text == "[1,"
            break
        with anyio.move_on_after(0.01):
            await client.generate([3])
        await client.stats()
        assert len(engine.aborted) == 2


@pytest.mark.anyio
async def test_a_silent_engine(anyio_backend: Any) -> None:
    engine = ScriptedEngine()
    async with engine.client() as client:
        await client.health()
        engine.stop_answering()
        with pytest.raises(octavo.EngineUnresponsive):
            await client.health(0.01)


@pytest.mark.anyio
async def test_no_tokens_at_all(anyio_backend: Any) -> None:
    async with ScriptedEngine({"": ""}).client() as client:
        done = await client.generate("")
        assert (done.text, done.token_ids, done.finish_reason) == ("", (), "stop")


@pytest_asyncio.fixture
async def scripted_client() -> Any:
    """pytest-asyncio sets up and tears down a fixture in different tasks."""
    async with ScriptedEngine(default="yes").client() as client:
        yield client


@pytest.mark.asyncio
async def test_pytest_asyncio(scripted_client: octavo.AsyncClient) -> None:
    assert (await scripted_client.generate("?")).text == "yes"


@pytest.mark.anyio
async def test_chat_templates(anyio_backend: Any) -> None:
    chat = [{"role": "user", "content": "two words"}]
    async with ScriptedEngine().client() as client:
        assert await client.apply_chat_template(chat) == "two words"
        assert await client.apply_chat_template(chat, tokenize=True) == await client.tokenize(chat) == [0, 1]
        for wrong in ("text", {"role": "user"}, [], 3):
            with pytest.raises(octavo.InvalidRequest, match="chat messages are needed"):
                await client.apply_chat_template(wrong)  # type: ignore[call-overload]
