"""What callers give to a client, checked and made into messages: prompts, token ids, chats, names of adapters."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from octavo import wire
from octavo.beams import BeamParams
from octavo.chats import template_variables, turns
from octavo.errors import InvalidOption, InvalidRequest
from octavo.options import EngineOptions, SamplingParams, replace

__all__ = [
    "DEFAULT_PARAMS",
    "Messages",
    "Params",
    "Prompt",
    "checked_ids",
    "generate_message",
    "ids_of",
    "items_of",
    "lora_name",
    "named_options",
    "read_params",
    "turns_of",
]

Messages = Sequence[Mapping[str, Any] | wire.Message]
Prompt = str | Sequence[int] | Messages
"""Text, token ids, or the messages of a chat: each has "role" and "content", and what else the model's template reads
("tool_calls", "tool_call_id", ...)."""

Params: TypeAlias = SamplingParams | BeamParams

DEFAULT_PARAMS = SamplingParams()


def generate_message(
    prompt: Prompt, params: Params | None, template: Mapping[str, Any] | None, lora: str | None
) -> Callable[[int], wire.Generate]:
    """The Generate message, less its request id. Raises InvalidRequest for what is no prompt."""
    if params is None:
        params = DEFAULT_PARAMS
    beam = params if isinstance(params, BeamParams) else None
    sampling = params.sampling() if isinstance(params, BeamParams) else params
    if not isinstance(sampling, SamplingParams):
        raise InvalidRequest(f"params: SamplingParams or BeamParams are needed, not {type(params).__name__}")
    lora_name(lora)
    if isinstance(prompt, str):
        return lambda request_id: wire.Generate(request_id, sampling, text=prompt, beam=beam, lora=lora)
    items = items_of(prompt)
    if items and isinstance(items[0], (Mapping, wire.Message)):
        messages, variables = turns(items), template_variables(template)
        return lambda request_id: wire.Generate(
            request_id, sampling, messages=messages, template=variables, beam=beam, lora=lora
        )
    ids = checked_ids(items)
    return lambda request_id: wire.Generate(request_id, sampling, token_ids=ids, beam=beam, lora=lora)


def items_of(value: Any, what: str = "prompt: text, token ids or chat messages") -> list[Any]:
    """Token ids or messages, yet to be checked; `what` begins the words of a refusal, which is InvalidRequest."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidRequest(f"{what} are needed, not {type(value).__name__}")
    return list(value)


def ids_of(value: Any, what: str = "token_ids: token ids") -> list[int]:
    """Token ids, checked; `what` as in items_of."""
    return checked_ids(items_of(value, what))


def named_options(model: Any, options: EngineOptions | None) -> EngineOptions:
    """Options with the model that they or `model` name. Raises InvalidOption."""
    if options is None:
        options = EngineOptions()
    elif not isinstance(options, EngineOptions):
        raise InvalidOption("options", options, "EngineOptions(...)")
    if model is not None:
        if not isinstance(model, (str, os.PathLike)):
            raise InvalidOption("model", model, "a path, a GGUF file or a hub id")
        name = os.fspath(model)
        if options.model and options.model != name:
            raise InvalidOption("model", name, f"given once, or the same as options.model={options.model!r}")
        options = replace(options, model=name)
    if not options.model:
        raise InvalidOption("model", options.model, "a local folder, a GGUF file or a hub id")
    return options


def lora_name(name: Any) -> str | None:
    """The name itself, checked."""
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"lora: the name of an adapter is needed, not {type(name).__name__}")
    return name


def read_params(params: SamplingParams | None, **more: Any) -> SamplingParams:
    """What of `params` says something about a prompt that is only read."""
    if params is None:
        params = DEFAULT_PARAMS
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params: SamplingParams are needed, not {type(params).__name__}")
    kept = ("priority", "queue_timeout", "first_token_timeout", "total_timeout")
    return SamplingParams(**{name: getattr(params, name) for name in kept}, **more)


def checked_ids(items: list[Any]) -> list[int]:
    """The same as plain ints of a token's size. Raises InvalidRequest."""
    if set(map(type, items)) - {int}:
        if any(isinstance(item, bool) for item in items):
            raise InvalidRequest("prompt: token ids must be whole numbers, got a bool")
        try:  # integers of other libraries
            items = [operator.index(item) for item in items]
        except TypeError as error:
            several = "; one prompt a call: calls that run side by side are batched"
            more = several if isinstance(items[0], (str, list, tuple)) else ""
            raise InvalidRequest(f"prompt: token ids must be whole numbers: {error}{more}") from None
    if items and (min(items) < 0 or max(items) >= 1 << 31):
        raise InvalidRequest(f"prompt: token ids must be in 0..2**31-1, got {min(items)}..{max(items)}")
    return items


def turns_of(what: str, messages: Any) -> list[wire.Message]:
    """Chat messages as the wire has them; `what` begins the words of a refusal, which is InvalidRequest."""
    found = turns(items_of(messages, what))
    if not found:
        raise InvalidRequest(f"{what} are needed, not {messages!r:.40}")
    return found
