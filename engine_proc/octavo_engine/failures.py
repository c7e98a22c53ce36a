"""What a client is told of an error that ends its request: the code of wire.Failed and the words."""

from __future__ import annotations

from octavo_engine.adapters import UnknownAdapter
from octavo_engine.execution.errors import OutOfMemory
from octavo_engine.execution.pooling import NotFinite
from octavo_engine.execution.processors import ProcessorFailed
from octavo_engine.intake import InvalidPrompt, TextTooLong
from octavo_engine.scheduling.scheduler import DoesNotFit, QueueFull
from octavo_engine.structured import GrammarFailed, InvalidGrammar

__all__ = ["failure"]

_CODES: dict[type[Exception], str] = {
    DoesNotFit: "prompt_too_long",
    GrammarFailed: "invalid_grammar",
    InvalidGrammar: "invalid_grammar",
    TextTooLong: "prompt_too_long",
    InvalidPrompt: "invalid_request",
    NotFinite: "failed",
    OutOfMemory: "out_of_memory",
    ProcessorFailed: "failed",
    QueueFull: "overloaded",
    UnknownAdapter: "unknown_lora",
}


def failure(error: Exception, at: str) -> tuple[str, str]:
    """(code, message). at: what could not be done, where an error may be none of ours, which says too little alone."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code, str(error)
    return "failed", f"{at}: {type(error).__name__}: {error}"
