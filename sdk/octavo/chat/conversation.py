"""The state of a chat: what was said, under which system message, with which sampling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidOption
from octavo.options import SamplingParams, replace
from octavo.wire import Message

if TYPE_CHECKING:
    from octavo.client import AsyncClient
    from octavo.stream import Stream

__all__ = ["Conversation"]


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Saved(msgspec.Struct):
    """A chat on disk, in the form that OpenAI's API takes its messages in."""

    messages: list[_Turn]
    model: str = ""


class Conversation:
    """Turns alternate; the last one is the user's while an answer is awaited."""

    def __init__(self, client: AsyncClient, params: SamplingParams, system: str = "") -> None:
        self.client, self.params, self.system = client, params, system
        self.turns: list[Message] = []
        self.tokens = self.answers = 0

    def say(self, text: str) -> None:
        self.turns.append(Message("user", text))

    def answered(self, text: str, tokens: int) -> None:
        self.turns.append(Message("assistant", text))
        self.tokens += tokens
        self.answers += 1

    def give_up(self) -> None:
        """There is no answer to what was said last: it was not said."""
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()

    def messages(self) -> list[Message]:
        return [Message("system", self.system), *self.turns] if self.system else list(self.turns)

    def stream(self) -> Stream:
        """The answer. A model without a chat template completes text; it knows no turns."""
        template = self.client.ready.has_chat_template
        return self.client.stream(self.messages() if template else self.turns[-1].content, self.params)

    # ---- what the commands do --------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.turns.clear()

    def undo(self) -> str:
        """Take the last exchange back; what the user had said. Raises InvalidOption where there is none."""
        said = [i for i, turn in enumerate(self.turns) if turn.role == "user"]
        if not said:
            raise InvalidOption("/undo", "nothing", "something that was said before")
        text = self.turns[said[-1]].content
        del self.turns[said[-1] :]
        return text

    def set(self, name: str, text: str) -> str:
        """Change a field of the sampling; its new value. Raises InvalidOption for a name or value that can't be."""
        if name not in SamplingParams.__struct_fields__ or name == "n":
            allowed = ", ".join(field for field in SamplingParams.__struct_fields__ if field != "n")
            raise InvalidOption("/set", name, f"one of {allowed}")
        value: Any = text
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError:
            if text.lower() == "none":
                value = None
        if name in ("stop", "bad_words") and not isinstance(value, (str, list)):
            value = text  # a number is a text there
        self.params = replace(self.params, **{name: value})
        return f"{name} = {getattr(self.params, name)}"

    def save(self, path: str) -> Path:
        """Raises InvalidOption where it can't be written. It appears whole or not at all."""
        target = Path(path).expanduser()
        turns = [_Turn(turn.role, turn.content) for turn in self.messages()]
        data = msgspec.json.format(msgspec.json.encode(_Saved(turns, self.client.options.model)), indent=1)
        scratch = target.with_name(target.name + ".part")
        try:
            scratch.write_bytes(data + b"\n")
            os.replace(scratch, target)
        except OSError as error:
            raise InvalidOption("/save", path, f"a file that can be written ({error.strerror})") from error
        return target

    def load(self, path: str) -> int:
        """Take the place of what was said so far; the number of turns. Raises InvalidOption where it is no chat."""
        try:
            saved = msgspec.json.decode(Path(path).expanduser().read_bytes(), type=_Saved)
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidOption("/load", path, f"a chat that /save wrote ({error})") from error
        turns = [Message(turn.role, turn.content) for turn in saved.messages]
        systems = [turn.content for turn in turns if turn.role == "system"]
        self.system = systems[0] if systems else ""
        self.turns = [turn for turn in turns if turn.role != "system"]
        return len(self.turns)
