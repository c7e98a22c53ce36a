"""Every message between client and engine, and its codec: the only module that both sides import.

A frame is a msgpack array of tagged messages. The engine binds a ROUTER, each client holds a DEALER: a ROUTER frame
has the client's identity in front. Request ids are chosen by the client and unique within it.
Every Generate ends in exactly one Finished or Failed (law 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from octavo.beams import BeamParams
from octavo.options import EngineOptions, SamplingParams

__all__ = [
    "MAX_TCP_FRAME",
    "PROTOCOL_VERSION",
    "Abort",
    "Choice",
    "Delta",
    "Deltas",
    "Detokenize",
    "Drain",
    "Dying",
    "Embed",
    "Failed",
    "Finished",
    "Generate",
    "Goodbye",
    "Hello",
    "ListLoras",
    "LoadLora",
    "LoraInfo",
    "Loras",
    "Message",
    "Progress",
    "Ready",
    "Score",
    "Stats",
    "StatsRequest",
    "Texts",
    "TokenLogprob",
    "Tokenize",
    "Tokens",
    "UnloadLora",
    "Usage",
    "decode_to_client",
    "decode_to_engine",
    "encode",
    "plain",
]

PROTOCOL_VERSION = 4
MAX_TCP_FRAME = 256 << 20
"""Bytes of one frame to an engine over tcp: whom it has not let in yet could make it keep any number of them."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One turn of a chat prompt. more: a JSON object, what else the template may read of it (tool_calls, ...)."""

    role: str
    content: str | None
    more: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token of the output (or prompt): its log probability, its rank (1 is the most likely) and the best ones."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


# ---- to the engine ---------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A client introduces itself; answered by Progress while loading and by Ready once, when ready."""

    protocol: int


class Embed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The prompt's hidden states behind the final norm as one vector: their mean, or that of the last token; its first
    `dimensions` elements, scaled to length 1 where `normalize`."""

    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    dimensions: int | None = None


class Score(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The log probabilities of the prompt's tokens behind `start`, each given all before it: what
    SamplingParams.prompt_logprobs gives, less the first ones, which the prefix cache may then spare."""

    start: int


class Generate(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Exactly one of text, token_ids and messages (a chat; the model's template is applied) is the prompt.

    template: a JSON object, what else the template reads (tools, documents, enable_thinking, ...). It is JSON, and not
    decoded with the frame, so that whatever a caller nests in it can only fail this request.
    task: what else than to continue it; no token is drawn then. lora: the adapter to run it with, by name.
    beam: search with it; params are beam.sampling() then. All output comes at the end, one delta a choice.
    """

    request_id: int
    params: SamplingParams
    text: str | None = None
    token_ids: list[int] | None = None
    messages: list[Message] | None = None
    template: str | None = None
    task: Embed | Score | None = None
    lora: str | None = None
    beam: BeamParams | None = None


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Idempotent; the request still ends in one Finished, with finish_reason "abort" where it was running."""

    request_ids: list[int]


class StatsRequest(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Answered by Stats from the step loop, so that it also proves the loop alive."""

    token: int


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Finish what runs, take nothing new, then exit. Obeyed only from the client that spawned the engine."""

    abort: bool = True  # abort what runs instead of finishing it


class Goodbye(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """A client of a shared engine leaves: its requests are aborted, nothing is answered."""


class Tokenize(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The token ids of a text, of any length; answered by Tokens. special: with those that begin (or end) a prompt.

    messages: a chat instead of the text, through the model's template; template: as of Generate. render: what the
    template makes of them is wanted itself, as Texts.
    """

    request_id: int
    text: str
    special: bool = True
    messages: list[Message] | None = None
    template: str | None = None
    render: bool = False


class Detokenize(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The text of a sequence of tokens; answered by Texts: of one text, or with `each` of one a token by itself."""

    request_id: int
    token_ids: list[int]
    skip_special_tokens: bool = True
    each: bool = False


class LoadLora(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Load the adapter of a folder or hub id under a name; answered by Loras. Loading it again changes nothing."""

    request_id: int
    name: str
    path: str


class UnloadLora(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """New requests can't name it from now on; answered by Loras once those that run with it have ended."""

    request_id: int
    name: str


class ListLoras(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Answered by Loras."""

    request_id: int


# ---- to the client ---------------------------------------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """What the engine is doing before Ready: stage "download" or "load", in bytes, or "capture", in CUDA graphs."""

    stage: str
    done: int
    total: int
    text: str = ""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """options carries what was resolved: every None and "auto" replaced by what the engine took.

    chat_template: its source, from which a client sees how the model calls tools. embedding_size: the elements of a
    vector that Embed gives.
    """

    protocol: int
    pid: int
    version: str
    options: EngineOptions
    architecture: str
    has_tokenizer: bool
    has_chat_template: bool
    vocab_size: int
    num_pages: int
    eos_token_ids: tuple[int, ...]
    chat_template: str | None = None
    embedding_size: int = 0


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New output of one choice. finish_reason is set on the choice's last delta, then stop_reason says what stopped it:
    the stop string, the stop token id, or None for the end-of-sequence token."""

    request_id: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """All new output of one step for one client."""

    deltas: list[Delta]


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens and times (seconds since the engine took the request). first_token_seconds is None if none came."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float | None = None
    total_seconds: float = 0.0


class Choice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one choice ended. score: of a beam search, by which the choices are ordered."""

    index: int
    finish_reason: str
    stop_reason: str | int | None
    cumulative_logprob: float | None
    score: float | None = None


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """The request ended. prompt_logprobs has one entry a prompt token, the first None, where it was asked for; for
    Score one a token behind `start`. embedding: for Embed, float32 in little-endian order."""

    request_id: int
    choices: tuple[Choice, ...]
    prompt_token_ids: tuple[int, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    embedding: bytes | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The request ended in an error. code: invalid_request, invalid_grammar, unknown_lora, prompt_too_long, overloaded,
    timeout, failed, out_of_memory, draining.
    which: for a timeout "queue", "first_token" or "total". Deltas sent before stay valid; prompt_token_ids and usage
    are given once the request had been admitted."""

    request_id: int
    code: str
    message: str
    which: str | None = None
    prompt_token_ids: tuple[int, ...] = ()
    usage: Usage | None = None


class Stats(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Answer to StatsRequest. values: the engine's counters and gauges by their metric names."""

    token: int
    values: dict[str, float]


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Answer to Tokenize. error: why there are none, as where the checkpoint has no tokenizer."""

    request_id: int
    token_ids: tuple[int, ...]
    error: str | None = None


class Texts(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """Answer to Detokenize, and to a Tokenize with `render`. error: why there are none, as without a tokenizer."""

    request_id: int
    texts: tuple[str, ...]
    error: str | None = None


class LoraInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An adapter that is loaded. rank: the largest of its layers; modules: the last parts of their names."""

    name: str
    path: str
    rank: int
    modules: tuple[str, ...]


class Loras(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """Answer to LoadLora, UnloadLora and ListLoras: what is loaded now. error: why it was not done."""

    request_id: int
    loras: tuple[LoraInfo, ...]
    error: str | None = None


class Dying(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """The engine is about to exit. code: start_failed, model, invalid_option, out_of_memory, protocol, drained,
    device_lost, internal."""

    code: str
    message: str


ToEngine = (
    Hello
    | Generate
    | Abort
    | StatsRequest
    | Drain
    | Goodbye
    | Tokenize
    | Detokenize
    | LoadLora
    | UnloadLora
    | ListLoras
)
ToClient = Progress | Ready | Deltas | Finished | Failed | Stats | Dying | Tokens | Texts | Loras


def plain(value: Any) -> Any:
    """A caller's own kind of str, int or float (numpy.float64, markupsafe.Markup) as a plain one; an enc_hook."""
    for kind, convert in _PLAIN:
        if isinstance(value, kind):
            return convert(value)
    raise TypeError(f"{type(value).__name__} is no type that can be sent")


# Of the class, and not what a subclass makes of them.
_PLAIN: tuple[tuple[type, Any], ...] = ((str, str.__str__), (int, int.__int__), (float, float.__float__))
_encoder = msgspec.msgpack.Encoder(enc_hook=plain)
_to_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(list[ToEngine])
_to_client: msgspec.msgpack.Decoder[list[ToClient]] = msgspec.msgpack.Decoder(list[ToClient])


def encode(messages: list[Any]) -> bytes:
    """One frame. Both directions."""
    return _encoder.encode(messages)


def _decode(decode: Callable[[bytes | memoryview], Any], frame: bytes | memoryview) -> Any:
    try:
        return decode(frame)
    except (UnicodeDecodeError, RecursionError) as error:  # a broken string; arrays nested without end
        raise msgspec.DecodeError(str(error)) from error


def decode_to_engine(frame: bytes | memoryview) -> list[ToEngine]:
    """Raises msgspec.DecodeError (msgspec.ValidationError for a wrong field) on a malformed frame."""
    messages: list[ToEngine] = _decode(_to_engine.decode, frame)
    return messages


def decode_to_client(frame: bytes | memoryview) -> list[ToClient]:
    """Raises msgspec.DecodeError on a malformed frame."""
    messages: list[ToClient] = _decode(_to_client.decode, frame)
    return messages
