"""What the model says, heard until nothing of it matters any more."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from octavo.openai.answer import Answer, Part
from octavo.results import Completion, CompletionChoice, Delta
from octavo.router import joined

if TYPE_CHECKING:
    from octavo.client import AsyncClient
    from octavo.openai.dialogue import Dialogue
    from octavo.stream import Stream

__all__ = ["Listener", "whole"]


class Listener:
    """Reads the choices of one stream, and ends it when each has ended or has the only call that it may hold."""

    def __init__(self, client: AsyncClient, stream: Stream, dialogue: Dialogue) -> None:
        self._client, self._stream = client, stream
        self._open = set(range(dialogue.params.n))
        self.answers: defaultdict[int, Answer] = defaultdict(dialogue.answer)

    async def hear(self, delta: Delta) -> list[Part]:
        """What it settles, of answers[delta.index]."""
        answer, last = self.answers[delta.index], delta.finish_reason is not None
        parts = answer.feed(delta.text, len(delta.token_ids), last)
        if delta.index in self._open and (last or answer.complete):
            self._open.remove(delta.index)
            if not self._open and not last:
                await self._client.abort(self._stream)
        return parts


async def whole(client: AsyncClient, dialogue: Dialogue, lora: str | None) -> Completion:
    """The answer in one piece. Raises as AsyncClient.generate does."""
    if not dialogue.tools.only_one:
        return await client.generate(dialogue.messages, dialogue.params, template=dialogue.template, lora=lora)
    said: defaultdict[int, list[Delta]] = defaultdict(list)
    async with client.stream(dialogue.messages, dialogue.params, template=dialogue.template, lora=lora) as stream:
        listener = Listener(client, stream, dialogue)
        async for delta in stream:
            said[delta.index].append(delta)
            await listener.hear(delta)
    assert stream.usage is not None
    assert stream.prompt_token_ids is not None
    choices = tuple(_choice(index, said[index]) for index in sorted(said))
    return Completion(choices, stream.prompt_token_ids, stream.usage)


def _choice(index: int, deltas: list[Delta]) -> CompletionChoice:
    last = deltas[-1]
    assert last.finish_reason is not None
    text, token_ids, logprobs = joined(deltas)
    return CompletionChoice(index, text, token_ids, last.finish_reason, last.stop_reason, logprobs)
