"""Responses that later ones may continue, in a bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from octavo.openai.errors import HTTPError

__all__ = ["ResponseStore", "Stored"]


class Stored(msgspec.Struct):
    """response: as it was answered. messages: the whole conversation behind it, its answer included, without
    instructions. input: its own input items."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    input: list[dict[str, Any]]


class ResponseStore:
    """The last responses, encoded, of at most max_bytes together; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, stored: Stored) -> None:
        data = msgspec.json.encode(stored)
        if len(data) > self._max_bytes:
            return
        self._kept[stored.response["id"]] = data
        self._bytes += len(data)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])

    def get(self, number: str, param: str | None = None) -> Stored:
        """Raises HTTPError 404; param: the request's field that names it."""
        data = self._kept.get(number)
        if data is not None:
            return msgspec.json.decode(data, type=Stored)
        if self._max_bytes:
            why = f"the last responses are kept, {self._max_bytes} bytes of them (--response-store-bytes)"
        else:
            why = "responses are not kept here (several workers, or --response-store-bytes 0): send the whole input"
        message = f"Response with id {number[:80]!r} not found: {why}"
        raise HTTPError(404, message, "invalid_request_error", "previous_response_not_found" if param else None, param)

    def delete(self, number: str) -> None:
        self.get(number)
        self._bytes -= len(self._kept.pop(number))
