"""The error of a request's field."""

from __future__ import annotations

from octavo.errors import InvalidRequest

__all__ = ["WrongField"]


class WrongField(InvalidRequest):
    """A field of a request has a value that can't be served; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
