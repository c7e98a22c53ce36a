"""What a request to /v1/responses holds, and its input as chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.openai.fields import ContentPart, Sampling, refuse, text_of
from octavo.openai.formats import Asked, ResponseFormat, of_format
from octavo.openai.tool_fields import Function, Toolbox, toolbox
from octavo.openai.wrong import WrongField
from octavo.options import SamplingParams

__all__ = ["ResponsesRequest"]

_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")


class Item(msgspec.Struct):
    """One item of the input: a message, a call of a function, its output, or thoughts."""

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class FlatTool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextOptions(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(Sampling, kw_only=True):
    """POST /v1/responses."""

    input: str | list[Item] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None  # of OpenAI's own tools, of which there are none
    tools: list[FlatTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    truncation: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    background_options: Any = None
    access_programs: Any = None
    image: Any = None
    moderation: Any = None
    # Ours.
    chat_template_kwargs: dict[str, Any] | None = None

    def items(self) -> list[Item]:
        if self.input is None or self.input == []:
            raise WrongField("input", "input: give a text or items")
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def messages(self) -> list[dict[str, Any]]:
        """The input, without the instructions."""
        return _messages(self.items())

    def toolbox(self) -> Toolbox:
        functions = []
        for i, tool in enumerate(self.tools or ()):
            if tool.type != "function" or tool.name is None:
                raise WrongField(f"tools[{i}]", f"tools[{i}]: of type {tool.type!r:.80}; functions alone are served")
            functions.append(Function(tool.name, tool.description, tool.parameters, tool.strict))
        return toolbox(functions, self.tool_choice, self.parallel_tool_calls)

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or _LOGPROBS in (self.include or ())

    def params(self) -> SamplingParams:
        refuse(self, "background", "conversation", "prompt", "context_management", "background_options")
        refuse(self, "access_programs", "image", "moderation")
        if self.n not in (None, 1):
            raise WrongField("n", f"n={self.n}: a response is one; /v1/chat/completions gives several")
        for name in self.include or ():
            if name not in _INCLUDABLE:
                allowed = ", ".join(map(repr, _INCLUDABLE))
                raise WrongField("include", f"include: {name!r:.80} is not served; allowed: {allowed}")
        if self.truncation not in (None, "disabled", "auto"):
            raise WrongField("truncation", f"truncation={self.truncation!r:.80}: one of 'disabled', 'auto'")
        if self.truncation == "auto":
            raise WrongField("truncation", "truncation='auto' is not served: a context that does not fit is refused")
        logprobs = (self.top_logprobs or 0) if self.wants_logprobs else None
        return self._params(max_tokens=self.max_output_tokens, logprobs=logprobs)

    def asked(self) -> Asked:
        asked = super().asked()
        form = (self.text.format if self.text is not None else None) or {"type": "text"}
        if form.get("type") != "text":
            wanted = {"type": form.get("type"), "json_schema": form if "schema" in form or "name" in form else None}
            asked.insert(0, ("text.format", of_format, msgspec.convert(wanted, ResponseFormat)))
        return asked

    def echoed(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        tools = [{"description": None, "parameters": None, "strict": None, **_given(tool)} for tool in self.tools or ()]
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": self.reasoning.effort if self.reasoning is not None else None, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.store is not False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": (self.text.format if self.text is not None else None) or {"type": "text"}},
            "tool_choice": "auto" if self.tool_choice is None else self.tool_choice,
            "tools": tools,
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }


def _given(value: msgspec.Struct) -> dict[str, Any]:
    return {name: found for name, found in msgspec.structs.asdict(value).items() if found is not None}


def _messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Calls belong to the assistant's message before them, thoughts to the one behind them."""
    messages: list[dict[str, Any]] = []
    thoughts: str | None = None
    for i, item in enumerate(items):
        where = f"input[{i}]"
        kind = item.type or ("message" if item.role is not None else None)
        if kind == "reasoning":
            thoughts = text_of(item.content, where) or thoughts
            continue
        if kind == "message":
            content = text_of(item.content, where)
            if item.role is None or content is None:
                raise WrongField(where, f"{where}: a message needs a role and content")
            messages.append({"role": item.role, "content": content})
        elif kind == "function_call":
            if item.call_id is None or item.name is None or item.arguments is None:
                raise WrongField(where, f"{where}: a function_call needs call_id, name and arguments")
            if not messages or messages[-1]["role"] != "assistant" or thoughts is not None:
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        elif kind == "function_call_output":
            output = text_of(item.output, where)
            if item.call_id is None or output is None:
                raise WrongField(where, f"{where}: a function_call_output needs call_id and output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        else:
            what = "message, function_call, function_call_output or reasoning"
            raise WrongField(where, f"{where}: an item of type {kind!r:.80} is not served; allowed: {what}")
        if thoughts is not None and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thoughts
            thoughts = None
    return messages
