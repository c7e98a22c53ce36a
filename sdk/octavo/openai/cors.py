"""Which web pages of other origins may call the server from a browser (fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from octavo.errors import InvalidOption

__all__ = ["cors"]

_TOKEN = re.compile(r"\*|[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_WORDS = {
    "allowed_origins": (re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#]+"), '"https://app.example.com", or "*"'),
    "allowed_methods": (_TOKEN, '"POST", or "*"'),
    "allowed_headers": (_TOKEN, '"Authorization", or "*"'),
}


def cors(
    allowed_origins: Sequence[str],
    allowed_methods: Sequence[str] = ("*",),
    allowed_headers: Sequence[str] = ("*",),
    allow_credentials: bool = False,
) -> dict[str, Any] | None:
    """What Starlette's CORSMiddleware is to be told; None where no origin is allowed. Raises InvalidOption."""
    given = {"origins": allowed_origins, "methods": allowed_methods, "headers": allowed_headers}
    for name, values in given.items():
        pattern, example = _WORDS[f"allowed_{name}"]
        strings = not isinstance(values, str) and all(isinstance(value, str) for value in values)
        if not strings or not all(pattern.fullmatch(value) for value in values):
            raise InvalidOption(f"allowed_{name}", values, f"a list of {name} such as {example}")
    if not allowed_origins:
        return None
    lists = {f"allow_{name}": list(values) for name, values in given.items()}
    return {**lists, "allow_credentials": allow_credentials, "expose_headers": ["x-request-id", "retry-after"]}
