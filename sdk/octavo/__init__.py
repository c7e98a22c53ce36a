"""octavo: an embeddable async LLM engine.

    async with octavo.AsyncClient("path/or/hub-id") as client:
        async for delta in client.stream("Once upon a time", octavo.SamplingParams(max_tokens=64)):
            print(delta.text, end="")

This package is the light client; the engine runs in a process of its own (pip install "octavo[engine]").
"""

from octavo.beams import BeamParams
from octavo.client import AsyncClient
from octavo.errors import (
    AccessDenied,
    ClientClosed,
    DeviceLost,
    EngineDead,
    EngineError,
    EngineNotInstalled,
    EngineStartError,
    EngineUnresponsive,
    InvalidGrammar,
    InvalidOption,
    InvalidRequest,
    LoraError,
    ModelError,
    OctavoError,
    OutOfMemory,
    Overloaded,
    PromptTooLong,
    ProtocolMismatch,
    RequestFailed,
    RequestTimeout,
)
from octavo.options import (
    Choice,
    EngineOptions,
    Grammar,
    JsonObject,
    JsonSchema,
    Quantization,
    Regex,
    SamplingParams,
)
from octavo.results import Completion, CompletionChoice, Delta, Embeddings, Score, TokenLogprob, Usage
from octavo.speculation import Draft, NGram
from octavo.stream import Stream
from octavo.wire import Message, Progress

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "BeamParams",
    "Choice",
    "ClientClosed",
    "Completion",
    "CompletionChoice",
    "Delta",
    "DeviceLost",
    "Draft",
    "Embeddings",
    "EngineDead",
    "EngineError",
    "EngineNotInstalled",
    "EngineOptions",
    "EngineStartError",
    "EngineUnresponsive",
    "Grammar",
    "InvalidGrammar",
    "InvalidOption",
    "InvalidRequest",
    "JsonObject",
    "JsonSchema",
    "LoraError",
    "Message",
    "ModelError",
    "NGram",
    "OctavoError",
    "OutOfMemory",
    "Overloaded",
    "Progress",
    "PromptTooLong",
    "ProtocolMismatch",
    "Quantization",
    "Regex",
    "RequestFailed",
    "RequestTimeout",
    "SamplingParams",
    "Score",
    "Stream",
    "TokenLogprob",
    "Usage",
]

__version__ = "0.1.0"
