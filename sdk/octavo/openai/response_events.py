"""A response as it grows: its output items, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from octavo.openai.answer import Answer, Part, Thoughts
from octavo.openai.tools import Arguments, Call, Text

__all__ = ["Output"]

Event = dict[str, Any]


class Output:
    """`add` takes what has come of the answer and gives the events; `finish` closes the last item.

    `items` are those that are closed, as the response will hold them.
    """

    def __init__(self, answer: Answer) -> None:
        self.items: list[dict[str, Any]] = []
        self._answer = answer
        self._open: dict[str, Any] | None = None
        self._logprobs: list[Any] = []

    def add(self, part: Part, logprobs: Sequence[Any] = ()) -> Iterator[Event]:
        match part:
            case Thoughts(text):
                if self._kind != "reasoning":
                    fresh = {"id": _id("rs"), "type": "reasoning", "summary": [], "content": []}
                    yield from self._begin(fresh, {"type": "reasoning_text", "text": ""})
                yield self._delta("response.reasoning_text.delta", text)
            case Text(text):
                if self._kind != "message":
                    fresh = {"id": _id("msg"), "type": "message", "role": "assistant", "content": []}
                    yield from self._begin(
                        fresh, {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                    )
                self._logprobs.extend(logprobs)
                yield {**self._delta("response.output_text.delta", text), "logprobs": list(logprobs)}
            case Call(index, name):
                yield from self.finish()
                call = self._answer.calls[index]
                item = {"id": _id("fc"), "type": "function_call", "call_id": call.id, "name": name, "arguments": ""}
                yield from self._begin(item, None)
            case Arguments(_, text):
                assert self._open is not None
                self._open["arguments"] += text
                yield {"type": "response.function_call_arguments.delta", **self._where, "delta": text}

    def finish(self, status: str = "completed") -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        where, part = self._where, self._part
        if item["type"] == "function_call":
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **where, **said}
        elif part is not None:
            where["content_index"] = 0
            kind = "reasoning_text" if item["type"] == "reasoning" else "output_text"
            done: Event = {"type": f"response.{kind}.done", **where, "text": part["text"]}
            if kind == "output_text":
                part["logprobs"], self._logprobs = self._logprobs, []
                done["logprobs"] = part["logprobs"]
            yield done
            yield {"type": "response.content_part.done", **where, "part": part}
            item["content"] = [part]
        item["status"] = status
        self.items.append(item)
        self._open = None
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    @property
    def empty(self) -> bool:
        return not self.items and self._open is None

    @property
    def _kind(self) -> str | None:
        return None if self._open is None else self._open["type"]

    @property
    def _where(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items)}

    def _begin(self, item: dict[str, Any], part: dict[str, Any] | None) -> Iterator[Event]:
        yield from self.finish()
        self._open, self._part = item, part
        item["status"] = "in_progress"
        yield {"type": "response.output_item.added", "output_index": len(self.items), "item": dict(item)}
        if part is not None:
            yield {"type": "response.content_part.added", **self._where, "content_index": 0, "part": dict(part)}

    def _delta(self, kind: str, text: str) -> Event:
        assert self._part is not None
        self._part["text"] += text
        return {"type": kind, **self._where, "content_index": 0, "delta": text}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex}"
