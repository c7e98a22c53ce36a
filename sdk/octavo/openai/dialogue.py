"""From a request's messages and tools to what is asked of the engine, and how its answer is read."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidOption, InvalidRequest
from octavo.openai.answer import Answer
from octavo.openai.forcing import calls_only
from octavo.openai.prompting import asks_messages_for_tools, told_in_a_message, told_in_text
from octavo.openai.reasoning import REASONING, ReasoningParser, reasoning_of
from octavo.openai.tool_fields import Toolbox
from octavo.openai.tools import FORMATS, format_of
from octavo.options import SamplingParams, replace

if TYPE_CHECKING:
    from octavo.client import AsyncClient

__all__ = ["Dialogue", "Dialogues", "check_parsers"]

_KEPT = 256  # template variables whose prompt's end is remembered


class Dialogue(msgspec.Struct):
    """What to ask, and `answer()`, which reads one choice."""

    messages: list[dict[str, Any]]
    params: SamplingParams
    template: dict[str, Any]
    tools: Toolbox
    form: str
    read_as: str  # the format of this answer, where it is not the family's own
    marks: str | None
    inside: bool

    def answer(self) -> Answer:
        thinking = ReasoningParser(REASONING[self.marks], self.inside) if self.marks is not None else None
        if not self.tools.functions:
            return Answer(thinking)
        parser, new_id = FORMATS[self.read_as].parser(self.tools.schemas), FORMATS[self.form].new_id
        return Answer(thinking, parser, new_id, self.tools.only_one)


class Dialogues:
    """How the model of one client is talked to. tool_parser, reasoning_parser: "auto", or names; see create_app."""

    def __init__(self, client: AsyncClient, tool_parser: str, reasoning_parser: str) -> None:
        self._client = client
        check_parsers(tool_parser, reasoning_parser)
        self._tool_parser, self._reasoning_parser = tool_parser, reasoning_parser
        self._ends: OrderedDict[bytes, str] = OrderedDict()

    async def open(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        tools: Toolbox,
        *,
        effort: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Dialogue:
        """effort: `reasoning_effort`; variables: `chat_template_kwargs`. Raises WrongField and what tokenising does."""
        template = self._client.ready.chat_template or ""
        form = self._form
        told = _named(messages, FORMATS[form].short_ids)
        if "developer" not in template:
            told = [{**m, "role": "system"} if m["role"] == "developer" else m for m in told]
        given = dict(variables or {})
        if effort is not None:
            given.setdefault("reasoning_effort", effort)
            if effort == "none":
                given.setdefault("enable_thinking", False)
        marks = self._marks
        inside = marks is not None and await self._opens(marks, given)
        if "tools" not in template:
            told = told_in_text(told, tools)
        elif tools.functions:
            given["tools"] = tools.told()
            if asks_messages_for_tools(template):
                told = told_in_a_message(told, tools, template)
        if tools.functions or marks in ("mistral", "seed"):
            params = replace(params, skip_special_tokens=False)  # the marks may be special tokens
        read_as = form
        if tools.functions and (tools.forced or params.structured is not None):
            thoughts = REASONING[marks] if marks is not None and inside else None
            grammar, read_as = calls_only(tools, form, thoughts, None if tools.forced else params.structured)
            params = replace(params, structured=grammar)
        return Dialogue(told, params, given, tools, form, read_as, marks, inside)

    @property
    def _form(self) -> str:
        ready = self._client.ready
        return format_of(ready.chat_template, ready.architecture) if self._tool_parser == "auto" else self._tool_parser

    @property
    def _marks(self) -> str | None:
        if self._reasoning_parser == "auto":
            return reasoning_of(self._client.ready.chat_template)
        return None if self._reasoning_parser == "none" else self._reasoning_parser

    async def _opens(self, marks: str, variables: Mapping[str, Any]) -> bool:
        """Whether a prompt ends in the mark, so that an answer begins with thoughts: seen from a prompt made so."""
        key = msgspec.json.encode(variables)
        if key not in self._ends:
            try:
                ids = await self._client.tokenize([{"role": "user", "content": "a"}], template=variables)
                self._ends[key] = (await self._client.detokenize(ids[-16:], skip_special_tokens=False)).rstrip()
            except InvalidRequest:  # the template wants other messages than this; the request's own may do
                self._ends[key] = ""
            if len(self._ends) > _KEPT:
                self._ends.popitem(last=False)
        return self._ends[key].endswith(REASONING[marks].begin)


def check_parsers(tool_parser: str, reasoning_parser: str) -> None:
    """Raises InvalidOption; needs no model."""
    if tool_parser not in ("auto", *FORMATS):
        raise InvalidOption("tool_parser", tool_parser, "'auto' or one of " + ", ".join(FORMATS))
    if reasoning_parser not in ("auto", "none", *REASONING):
        raise InvalidOption("reasoning_parser", reasoning_parser, "'auto', 'none' or one of " + ", ".join(REASONING))


def _named(messages: Sequence[Mapping[str, Any]], short_ids: bool) -> list[dict[str, Any]]:
    """Tools' answers with the tool's name, which some templates ask for, and ids as the template takes them."""
    names: dict[str, str] = {}
    told = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        names.update({call["id"]: call["function"]["name"] for call in calls})
        said = dict(message)
        answered = said.get("tool_call_id")
        if answered in names:
            said.setdefault("name", names[answered])
        if short_ids and calls:
            said["tool_calls"] = [{**call, "id": _short(call["id"])} for call in calls]
        if short_ids and answered:
            said["tool_call_id"] = _short(answered)
        told.append(said)
    return told


def _short(given: str) -> str:
    """Nine letters and digits for any id, the same for the same."""
    return given if len(given) == 9 and given.isalnum() else hashlib.sha256(given.encode()).hexdigest()[:9]
