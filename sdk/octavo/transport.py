"""Frames to and from the engine: the seam between the client and ZeroMQ.

A Transport moves whole frames, never blocks, and never waits: the client asks `receive` until it gives None, whenever
`on_readable` was called and after every `send`. octavo.testing plugs in here with an engine that lives in memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Protocol

import zmq

from octavo.errors import EngineStartError, InvalidOption
from octavo.loop import Loop

__all__ = ["CurveKeys", "Transport", "ZmqTransport", "curve_keys"]


# What a context and a monitored socket with its connection open (10), and some to spare.
_FDS = 16


def _need_fds() -> None:
    """ZeroMQ does not fail where it gets no more file descriptors: it aborts the process, which is not ours."""
    fds: list[int] = []
    try:
        for _ in range(_FDS):
            fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise EngineStartError(
            f"a connection to an engine takes up to {_FDS} files: {error}; raise ulimit -n"
        ) from None
    finally:
        for fd in fds:
            os.close(fd)


class Transport(Protocol):
    """Where frames go to and come from."""

    def start(self, loop: Loop, on_readable: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """Connect. on_readable: `receive` may give something. on_lost(why): the engine has closed the connection."""
        ...

    def send(self, frame: bytes) -> None:
        """Queue one frame; what can't be delivered is dropped (the engine's death is told otherwise)."""
        ...

    def receive(self) -> bytes | None:
        """The next frame, or None where there is none at the moment."""
        ...

    def flush_and_close(self, seconds: float) -> None:
        """Close, waiting up to seconds for what was sent to leave. Idempotent."""
        ...


class CurveKeys:
    """Keys of CurveZMQ (rfc.zeromq.org/spec/26), 40 characters of Z85 each; the client's are made up if not given."""

    def __init__(self, server_public_key: str, public_key: str | None = None, secret_key: str | None = None) -> None:
        if (public_key is None) != (secret_key is None):
            raise InvalidOption("secret_key", "...", "given together with public_key, or not at all")
        for name, key in (
            ("server_public_key", server_public_key),
            ("public_key", public_key),
            ("secret_key", secret_key),
        ):
            if key is not None and (not isinstance(key, str) or len(key) != 40):
                shown = f"{len(key)} characters" if isinstance(key, str) else key
                raise InvalidOption(name, shown, "a Z85 key of 40 characters")
        if public_key is None or secret_key is None:
            public, secret = zmq.curve_keypair()
            public_key, secret_key = public.decode(), secret.decode()
        self.server, self.public, self.secret = server_public_key, public_key, secret_key


def curve_keys(address: str, server: str | None, public: str | None, secret: str | None) -> CurveKeys | None:
    """The keys that an address is joined with; None for one that needs none. Raises InvalidOption."""
    if not isinstance(address, str):
        raise InvalidOption("address", address, '"ipc:///path/to/socket" or "tcp://host:port"')
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        return None
    if not address.startswith("tcp://"):
        raise InvalidOption("address", address, '"ipc:///path/to/socket", or "tcp://host:port" with CURVE keys')
    if server is None:
        raise InvalidOption("server_public_key", None, "the engine's CURVE key: tcp is not spoken without encryption")
    return CurveKeys(server, public, secret)


class ZmqTransport:
    """One DEALER socket with a context of its own; used from the loop's thread alone.

    watch_peer: tell `on_lost` when the connection breaks. A spawned engine is watched by its process instead.
    """

    def __init__(self, address: str, *, curve: CurveKeys | None = None, watch_peer: bool = False) -> None:
        self._address = address
        self._curve = curve
        self._watch_peer = watch_peer
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._loop: Loop | None = None
        self._fds: list[int] = []
        self._on_lost: Callable[[str], None] = lambda why: None

    def start(self, loop: Loop, on_readable: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        _need_fds()
        self._context = zmq.Context()
        self._socket = socket = self._context.socket(zmq.DEALER)
        # No high-water mark: a DEALER at its mark refuses to send, and a ROUTER at its mark drops silently. What is
        # queued is bounded by the engine's admission.
        socket.sndhwm = socket.rcvhwm = 0
        socket.linger = 0
        # The engine binds about a second after it was spawned: look for it often at first.
        socket.reconnect_ivl = 10
        socket.reconnect_ivl_max = 200
        if self._curve is not None:
            socket.curve_serverkey = self._curve.server.encode()
            socket.curve_publickey = self._curve.public.encode()
            socket.curve_secretkey = self._curve.secret.encode()
        if self._watch_peer:
            self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            self._watch(self._monitor, self._on_monitor)
        try:
            socket.connect(self._address)
        except (zmq.ZMQError, UnicodeEncodeError) as error:
            raise InvalidOption("address", self._address, f"one that ZeroMQ can connect to: {error}") from None
        self._watch(socket, on_readable)

    def _watch(self, socket: zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        assert self._loop is not None
        fd = socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        self._fds.append(fd)
        self._loop.watch(fd, callback)
        # The fd announces nothing until what setting up left in the socket's mailbox has been taken.
        callback()

    def _on_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return
            # 16 bits of event and 32 of value (zmq_socket_monitor(3)); zmq.utils.monitor would import zmq.asyncio.
            if int.from_bytes(event[:2], sys.byteorder) == zmq.EVENT_DISCONNECTED:
                self._on_lost(f"the engine at {self._address} closed the connection")

    def send(self, frame: bytes) -> None:
        if self._socket is not None:
            with contextlib.suppress(zmq.Again):  # the peer broke off the handshake: it is no engine
                self._socket.send(frame, zmq.NOBLOCK)

    def receive(self) -> bytes | None:
        if self._socket is None:
            return None
        try:
            return self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def flush_and_close(self, seconds: float) -> None:
        context, self._context = self._context, None
        if context is None or self._socket is None or self._loop is None:
            return
        for fd in self._fds:
            self._loop.unwatch(fd)
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self._socket.close(linger=int(seconds * 1000))
        self._socket = None
        context.term()
