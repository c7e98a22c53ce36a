"""One request over a connection of its own, and the server-sent events of its answer, each with the time it came."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import h11
import msgspec

from octavo.errors import InvalidOption

__all__ = ["Answer", "Target"]


class Target(msgspec.Struct, frozen=True):
    """A server: where it is, and what is said to it each time."""

    host: str
    port: int
    path: str = ""
    tls: bool = False
    api_key: str | None = None

    @classmethod
    def at(cls, url: str, api_key: str | None = None) -> Target:
        """Raises InvalidOption."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InvalidOption("--url", url, "http://HOST:PORT or https://HOST")
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), path, tls, api_key)

    def headers(self, length: int) -> list[tuple[str, str]]:
        made = [("host", f"{self.host}:{self.port}"), ("connection", "close"), ("accept", "*/*")]
        if self.api_key:
            made.append(("authorization", f"Bearer {self.api_key}"))
        return [*made, ("content-type", "application/json"), ("content-length", str(length))] if length else made


class Answer:
    """status and body are known at once where it is no stream of events."""

    def __init__(self, stream: anyio.abc.ByteStream, connection: h11.Connection) -> None:
        self._stream, self._connection = stream, connection
        self.status = 0
        self.streamed = False

    @classmethod
    @asynccontextmanager
    async def to(cls, target: Target, method: str, path: str, body: bytes = b"") -> AsyncIterator[Answer]:
        """Send the request and wait for the answer's head. Raises OSError and what anyio and h11 raise."""
        stream: anyio.abc.ByteStream
        if target.tls:
            context = ssl.create_default_context()
            stream = await anyio.connect_tcp(
                target.host, target.port, ssl_context=context, tls_standard_compatible=False
            )
        else:
            stream = await anyio.connect_tcp(target.host, target.port)
        async with stream:
            connection = h11.Connection(h11.CLIENT)
            head = h11.Request(method=method, target=target.path + path, headers=target.headers(len(body)))
            sent = (connection.send(head) or b"") + (connection.send(h11.Data(body)) or b"" if body else b"")
            await stream.send(sent + (connection.send(h11.EndOfMessage()) or b""))
            answer = cls(stream, connection)
            await answer._head()
            yield answer

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._connection.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            try:
                data = await self._stream.receive(1 << 16)
            except anyio.EndOfStream:
                data = b""
            self.came = time.perf_counter()
            self._connection.receive_data(data)

    async def _head(self) -> None:
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        assert isinstance(event, h11.Response)
        self.status = event.status_code
        kinds = [value for name, value in event.headers if name == b"content-type"]
        self.streamed = bool(kinds) and kinds[0].startswith(b"text/event-stream")

    async def body(self) -> bytes:
        made = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            made += event.data
        return bytes(made)

    async def events(self) -> AsyncIterator[tuple[float, bytes]]:
        """(time it came, its data) of each event; comments are left out."""
        rest = b""
        while isinstance(event := await self._next(), h11.Data):
            *whole, rest = (rest + event.data).split(b"\n\n")
            for one in whole:
                if one.startswith(b"data:"):
                    yield self.came, one[5:].strip()
