"""Errors in OpenAI's envelope, with the status that its clients act on (they retry 408, 409, 429 and 5xx)."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from octavo.errors import (
    ClientClosed,
    EngineError,
    InvalidOption,
    InvalidRequest,
    OctavoError,
    Overloaded,
    PromptTooLong,
    RequestTimeout,
)
from octavo.openai.wrong import WrongField

__all__ = ["HTTPError", "answer_of", "report"]

log = logging.getLogger("octavo.openai")

_RETRY_AFTER = {"retry-after": "1"}


class HTTPError(Exception):
    """A request that the server itself refuses."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param


def answer_of(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers."""
    status, kind, code, param, headers = _meaning(error)
    message = str(error)
    if isinstance(error, EngineError):  # the engine's log behind it is for who runs the server
        message = message.partition("; last stderr:")[0]
    body = {"error": {"message": message or type(error).__name__, "type": kind, "param": param, "code": code}}
    return status, body, headers


def report(path: str, error: Exception) -> None:
    """To the log, where it is the server's fault; prompts are in no message."""
    status, *_ = _meaning(error)
    if status >= 500:
        expected = isinstance(error, (OctavoError, HTTPError))
        log.error("%s: %s: %s", path, type(error).__name__, error, exc_info=None if expected else error)


def _misfit(message: str) -> tuple[str | None, str | None]:
    """OpenAI's code and the field's name, of a request that does not fit its type."""
    what, _, where = message.partition(" - at `$")
    path = where.rstrip("`").removeprefix(".")
    for words, code in (
        ("contains unknown field", "unknown_parameter"),
        ("missing required field", "missing_required_parameter"),
    ):
        if words in what:
            name = what.partition("`")[2].rstrip("`")
            return code, f"{path}.{name}" if path else name
    return "invalid_type" if path else None, path or None


def _meaning(error: Exception) -> tuple[int, str, str | None, str | None, dict[str, str]]:
    invalid = "invalid_request_error"
    match error:
        case HTTPError():
            return error.status, error.kind, error.code, error.param, {}
        case PromptTooLong():
            return 400, invalid, "context_length_exceeded", "messages", {}
        case WrongField():
            return 400, invalid, None, error.param, {}
        case InvalidOption():
            return 400, invalid, None, error.field, {}
        case msgspec.ValidationError():
            return 400, invalid, *_misfit(str(error)), {}
        case InvalidRequest() | msgspec.DecodeError():
            return 400, invalid, None, None, {}
        case Overloaded():
            return 429, "rate_limit_error", "rate_limit_exceeded", None, _RETRY_AFTER
        case RequestTimeout():
            return 408, "timeout", f"{error.which}_timeout", None, {}
        case EngineError() | ClientClosed():
            return 503, "server_error", "engine_unavailable", None, _RETRY_AFTER
        case OctavoError():
            return 500, "server_error", None, None, {}
    return 500, "server_error", "internal_error", None, {}
