"""What the requests hold: the fields of OpenAI's specification that mean something to a local text model, and ours.

A field that is known but not served is refused by name. Unknown ones are ignored, as clients send hints of their own.
Ours, beyond OpenAI's: the fields of SamplingParams that it lacks (top_k, min_p, repetition_penalty, ...).
"""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.errors import InvalidRequest
from octavo.options import SamplingParams
from octavo.wire import Message

__all__ = ["ChatRequest", "CompletionRequest", "DetokenizeRequest", "TokenizeRequest", "WrongField"]


class WrongField(InvalidRequest):
    """A field of a request has a value that can't be served; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis; a local server sends none


class _Sampling(msgspec.Struct, kw_only=True):
    """What both kinds of generation take. None is OpenAI's default, which is SamplingParams' too."""

    model: str
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    # Ours.
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    queue_timeout: float | None = None
    first_token_timeout: float | None = None
    total_timeout: float | None = None

    def _params(self, **more: Any) -> SamplingParams:
        """Raises InvalidOption, whose `field` is the name that the caller used."""
        if self.stream_options is not None and not self.stream:
            raise WrongField("stream_options", "stream_options is only allowed when stream is true")
        names = set(SamplingParams.__struct_fields__) & set(_Sampling.__struct_fields__)
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.logit_bias is not None:
            try:
                given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
            except ValueError:
                raise WrongField("logit_bias", f"logit_bias: keys are token ids, got {self.logit_bias}") from None
        if given.get("stop") == "":  # what some clients send for none
            del given["stop"]
        return SamplingParams(**given, **{name: value for name, value in more.items() if value is not None})

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options is not None and self.stream_options.include_usage)


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None

    def plain(self, i: int) -> Message:
        where = f"messages[{i}]"
        if self.tool_calls:
            raise WrongField(f"{where}.tool_calls", f"{where}: tool calls are not served yet")
        if isinstance(self.content, str):
            return Message(self.role, self.content)
        if self.content is None:
            raise WrongField(f"{where}.content", f"{where} has no content")
        texts = []
        for part in self.content:
            if part.type not in ("text", "input_text") or part.text is None:
                raise WrongField(
                    f"{where}.content", f"{where}: a part of type {part.type!r}; this model reads text only"
                )
            texts.append(part.text)
        return Message(self.role, "\n".join(texts))


class ChatRequest(_Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    audio: Any = None
    prediction: Any = None

    def prompt(self) -> list[Message]:
        if not self.messages:
            raise WrongField("messages", "messages: give at least one")
        return [message.plain(i) for i, message in enumerate(self.messages)]

    def params(self) -> SamplingParams:
        _refuse(self, "functions", "audio", "prediction")
        if self.tools and self.tool_choice != "none":
            raise WrongField("tools", "tools are not served yet; leave them out or say tool_choice: 'none'")
        if self.response_format is not None and self.response_format.get("type") != "text":
            kind = self.response_format.get("type")
            raise WrongField("response_format", f"response_format of type {kind!r} is not served yet; allowed: 'text'")
        if self.modalities not in (None, ["text"]):
            raise WrongField("modalities", f"modalities={self.modalities}: this model writes text only")
        if self.top_logprobs is not None and not self.logprobs:
            raise WrongField("top_logprobs", "top_logprobs needs logprobs: true")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._params(max_tokens=limit, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class CompletionRequest(_Sampling, kw_only=True):
    """POST /v1/completions. prompt: a text, a list of texts, token ids, or a list of those."""

    prompt: str | list[str | int | list[int]] | None = None
    max_tokens: int | None = 16
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None

    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        if prompt is None or prompt == []:
            raise WrongField("prompt", "prompt: give a text or token ids")
        if isinstance(prompt, str):
            return [prompt]
        kinds = set(map(type, prompt))
        if len(kinds) > 1:
            raise WrongField("prompt", "prompt: a list holds either texts, or token ids, or lists of token ids")
        return [prompt] if kinds == {int} else prompt

    def params(self) -> SamplingParams:
        _refuse(self, "suffix")
        best_of = None if self.best_of == (self.n or 1) else self.best_of
        if best_of is not None and self.stream:
            raise WrongField("best_of", f"best_of={best_of}: which are best is known only at the end: not with stream")
        asked = self.logprobs if self.echo and not self.stream else None
        # OpenAI allows 0 with echo, to score a prompt; one token is drawn then and thrown away.
        limit = 1 if self.max_tokens == 0 and self.echo else self.max_tokens
        return self._params(max_tokens=limit, logprobs=self.logprobs, prompt_logprobs=asked, best_of=best_of)


class TokenizeRequest(msgspec.Struct):
    """POST /tokenize: a prompt, or messages through the chat template."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    model: str | None = None


class DetokenizeRequest(msgspec.Struct):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


def _refuse(request: msgspec.Struct, *names: str) -> None:
    for name in names:
        if getattr(request, name):
            raise WrongField(name, f"{name} is not served")
