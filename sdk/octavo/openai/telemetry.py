"""OpenTelemetry spans, where its API is installed and the host has set up a tracer; else nothing.

A span of kind SERVER a request, within the caller's trace (header traceparent), with the attributes that
OpenTelemetry's conventions name for HTTP and for generation. No prompt and no answer is in them.
`opentelemetry-instrument octavo serve MODEL` sets a tracer up from the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry import propagate, trace
except ImportError:  # it is no requirement
    propagate = trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from octavo.results import Usage

__all__ = ["asked", "request_span", "used"]


class _Span:
    def __init__(self, span: Any = None) -> None:
        self._span = span

    def ended(self, status: int) -> None:
        """status: of HTTP; 0 where nothing was answered."""
        if self._span is None:
            return
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)


@contextmanager
def request_span(method: str, path: str, headers: Mapping[bytes, bytes]) -> Iterator[_Span]:
    """Around one HTTP request."""
    if trace is None:
        yield _Span()
        return
    carrier = {name: headers[name.encode()].decode("latin-1") for name in _PROPAGATED if name.encode() in headers}
    attributes = {"http.request.method": method, "url.path": path}
    with trace.get_tracer("octavo.openai").start_as_current_span(
        f"{method} {path}",
        context=propagate.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
    ) as span:
        yield _Span(span)


_PROPAGATED = ("traceparent", "tracestate", "baggage")


def asked(operation: str, model: str) -> None:
    """Of the current request: what it asks for ("chat", "text_completion", ...)."""
    _set({"gen_ai.operation.name": operation, "gen_ai.request.model": model, "gen_ai.system": "octavo"})


def used(usage: Usage) -> None:
    """Of the current request, or of one of its prompts: the tokens."""
    _set({"gen_ai.usage.input_tokens": usage.prompt_tokens, "gen_ai.usage.output_tokens": usage.completion_tokens})


def _set(attributes: dict[str, Any]) -> None:
    if trace is not None:
        trace.get_current_span().set_attributes(attributes)
