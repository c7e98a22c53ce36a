"""Every error octavo raises.

OctavoError
├── InvalidOption            a field of EngineOptions or SamplingParams has a wrong value (also a ValueError)
├── InvalidRequest           this request can't be served as asked (also a ValueError)
│   ├── InvalidGrammar       SamplingParams.structured can't be compiled
│   ├── LoraError            an adapter is not loaded, or can't be loaded or unloaded
│   └── PromptTooLong        it does not fit the context or the whole cache
├── Overloaded               admission bounds are full; try again later
├── RequestTimeout           one of the request's own deadlines passed; `.partial` keeps what came
├── RequestFailed            the engine could not finish this one request
│   └── OutOfMemory          because a step with it alone exceeds the device's memory
├── ClientClosed             the client was closed, or never opened
└── EngineError              the engine process itself
    ├── EngineNotInstalled   the extra octavo[engine] is missing
    ├── EngineStartError     it did not become ready
    │   ├── AccessDenied     because its keys or the client's are not the right ones (tcp)
    │   └── ModelError       because the model could not be found, read or is not supported
    ├── EngineDead           it exited or went away; exit code and last stderr are in the message
    │   └── DeviceLost       because its GPU stopped answering
    ├── EngineUnresponsive   its step loop did not answer in time
    └── ProtocolMismatch     client and engine speak different versions of the wire
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccessDenied",
    "ClientClosed",
    "DeviceLost",
    "EngineDead",
    "EngineError",
    "EngineNotInstalled",
    "EngineStartError",
    "EngineUnresponsive",
    "InvalidGrammar",
    "InvalidOption",
    "InvalidRequest",
    "LoraError",
    "ModelError",
    "OctavoError",
    "OutOfMemory",
    "Overloaded",
    "PromptTooLong",
    "ProtocolMismatch",
    "RequestFailed",
    "RequestTimeout",
]


class OctavoError(Exception):
    """Base of all errors of this library."""


class InvalidOption(OctavoError, ValueError):
    """A field has a value that is not allowed. `field`, `value` and `allowed` say which."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}={value!r}: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.allowed)


class InvalidRequest(OctavoError, ValueError):
    """The request can't be served as asked; the message names the value and the option to change."""


class InvalidGrammar(InvalidRequest):
    """What SamplingParams.structured asks for can't be compiled, or not within the limits; the message says why."""


class PromptTooLong(InvalidRequest):
    """Prompt and asked tokens exceed max_model_len or the KV cache."""


class LoraError(InvalidRequest):
    """No adapter of that name is loaded, or one can't be loaded: its file, the model, or EngineOptions.max_loras."""


class Overloaded(OctavoError):
    """The engine's queue is at max_queued_requests or max_queued_tokens."""


class RequestTimeout(OctavoError):
    """A deadline of the request passed: `which` is "queue", "first_token" or "total".

    `partial` is the Completion of what had been generated, when raised by `generate`; None before any token.
    """

    def __init__(self, message: str, which: str = "total", partial: Any = None) -> None:
        super().__init__(message)
        self.which, self.partial = which, partial


class RequestFailed(OctavoError):
    """The engine failed on this request alone; it goes on serving others."""


class OutOfMemory(RequestFailed):
    """A step with this request alone took more memory than the device has; the message names the options to lower."""


class ClientClosed(OctavoError):
    """The client is not open."""


class EngineError(OctavoError):
    """The engine process could not be started or used."""


class EngineNotInstalled(EngineError):
    """octavo_engine can't be imported: pip install "octavo[engine]"."""


class EngineStartError(EngineError):
    """The engine did not become ready. `exit_code` is None where it was still running."""

    def __init__(self, message: str, exit_code: int | None = None, stderr_tail: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.stderr_tail = exit_code, stderr_tail


class AccessDenied(EngineStartError):
    """An engine joined over tcp does not let this client in, or is not the one that server_public_key is of."""


class ModelError(EngineStartError):
    """The model can't be found, read, or is not supported."""


class EngineDead(EngineError):
    """The engine process exited or vanished. Negative `exit_code`: killed by that signal."""

    def __init__(self, message: str, exit_code: int | None = None, stderr_tail: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.stderr_tail = exit_code, stderr_tail


class DeviceLost(EngineDead):
    """The engine ended because its GPU stopped answering: a kernel failed, or the driver took the device away."""


class EngineUnresponsive(EngineError):
    """The engine's step loop did not answer within the asked time: it hangs, is stopped, or a step takes that long.

    Raised by `stats` and `health` after their timeout, and by every call after
    EngineOptions.heartbeat_timeout. The client stays open: should the engine come to, later calls work again.
    """


class ProtocolMismatch(EngineError):
    """Client and engine are of different versions."""
