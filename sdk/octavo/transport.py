"""Frames to and from the engine: the seam between the client and ZeroMQ.

A Transport moves whole frames, never blocks, and never waits: the client asks `receive` until it gives None, whenever
`on_readable` was called and after every `send`. octavo.testing plugs in here with an engine that lives in memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import sys
from collections.abc import Callable
from typing import Protocol

import zmq
from zmq.utils import z85

from octavo import wire
from octavo.errors import AccessDenied, EngineError, EngineStartError, InvalidOption, InvalidRequest, ProtocolMismatch
from octavo.loop import Loop

__all__ = ["CurveKeys", "Key", "Transport", "ZmqTransport", "curve_keys", "new_certificates"]

Key = str | os.PathLike[str]
"""40 characters of Z85 (rfc.zeromq.org/spec/32), or the path of a certificate that holds them (`octavo keys`)."""

# What a context and a monitored socket with its connection open (10), and some to spare.
_FDS = 16
# Handshakes that the other side breaks off without a word, one after the other, before it is taken for its answer: as
# an engine does with another server_public_key, but it may also have been about to end.
_BROKEN_OFF = 8


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

    def start(self, loop: Loop, on_readable: Callable[[], None], on_lost: Callable[[str | EngineError], None]) -> None:
        """Connect. on_readable: `receive` may give something. on_lost(why): the engine has closed the connection, or,
        given an error, it (or who is there in its place) will not have one with us."""
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
    """Keys of CurveZMQ (rfc.zeromq.org/spec/26); the client's own are made up if not given (`made_up`), and the public
    one follows from the secret one. Raises InvalidOption, which shows no secret key.
    """

    def __init__(self, server_public_key: Key, public_key: Key | None = None, secret_key: Key | None = None) -> None:
        self.server = _read_key("server_public_key", server_public_key)
        self.made_up = secret_key is None
        if secret_key is None:
            if public_key is not None:
                raise InvalidOption("secret_key", None, "the one that belongs to public_key")
            public, secret = zmq.curve_keypair()
            self.public, self.secret = public.decode(), secret.decode()
            return
        self.secret = _read_key("secret_key", secret_key, secret=True)
        self.public = zmq.curve_public(self.secret.encode()).decode()
        if public_key is not None and _read_key("public_key", public_key) != self.public:
            raise InvalidOption("public_key", public_key, "the one that belongs to secret_key, or none at all")


def _read_key(name: str, key: Key, *, secret: bool = False) -> str:
    found, shown = key, "..." if secret else key
    if isinstance(key, os.PathLike):
        from zmq.auth import load_certificate

        shown = os.fspath(key)
        try:
            mode = stat.S_IMODE(os.stat(key).st_mode)
            pair = load_certificate(key)
        except (OSError, ValueError, IndexError) as error:
            raise InvalidOption(name, shown, f"a certificate, as `octavo keys` makes them: {error}") from None
        part = pair[1] if secret else pair[0]
        if part is None:
            raise InvalidOption(name, shown, "the file of a pair, NAME.key_secret: this one has no secret key")
        if secret and mode & 0o077:
            raise InvalidOption(name, shown, f"a file for its owner alone, and not of mode {mode:04o}: chmod 600 it")
        found = part.decode("utf-8", "replace")
    try:
        if isinstance(found, str) and len(z85.decode(found)) == 32:
            return found
    except (ValueError, KeyError, struct.error):
        pass  # as below
    raise InvalidOption(name, shown, "a key of 40 characters of Z85, or the Path of a certificate that holds it")


def new_certificates(folder: str, name: str) -> str:
    """A new pair in folder: its public key in name.key, both in name.key_secret. Returns the public one."""
    from zmq.auth import create_certificates, load_certificate

    return load_certificate(create_certificates(folder, name)[0])[0].decode()


def curve_keys(address: str, server: Key | None, public: Key | None, secret: Key | None) -> CurveKeys | None:
    """The keys that an address is joined with; None for one that needs none. Raises InvalidOption."""
    if not isinstance(address, str):
        raise InvalidOption("address", address, '"ipc:///path/to/socket" or "tcp://host:port"')
    if address.startswith("ipc://") and len(address) > len("ipc://"):
        return None
    found = re.fullmatch(r"tcp://.+:(\d+)", address)
    if found is None or not 0 < int(found[1]) < 65536:
        raise InvalidOption("address", address, '"ipc:///path/to/socket", or "tcp://host:port" with CURVE keys')
    if server is None:
        raise InvalidOption("server_public_key", None, "the engine's CURVE key: tcp is not spoken without encryption")
    return CurveKeys(server, public, secret)


_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
)


class ZmqTransport:
    """One DEALER socket with a context of its own; used from the loop's thread alone.

    watch_peer: tell `on_lost` when the connection breaks. A spawned engine is watched by its process instead.
    curve: for tcp; an engine that gives no sign of life for peer_timeout seconds is then taken for gone.
    """

    def __init__(
        self, address: str, *, curve: CurveKeys | None = None, watch_peer: bool = False, peer_timeout: float = 30.0
    ) -> None:
        self._address = address
        self._curve = curve
        self._peer_timeout = peer_timeout
        self._watch_peer = watch_peer
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._loop: Loop | None = None
        self._fds: list[int] = []
        self._on_lost: Callable[[str | EngineError], None] = lambda why: None
        self._joined = False  # let in, over tcp
        self._found = False  # the host's name has been
        self._retries = self._broken_off = 0

    def start(self, loop: Loop, on_readable: Callable[[], None], on_lost: Callable[[str | EngineError], None]) -> None:
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
        events = zmq.EVENT_DISCONNECTED
        if self._curve is not None:
            self._secure(socket, self._curve)
            events |= _HANDSHAKE
        if self._watch_peer:
            self._monitor = socket.get_monitor_socket(events)
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

    def _secure(self, socket: zmq.Socket[bytes], curve: CurveKeys) -> None:
        socket.curve_serverkey = curve.server.encode()
        socket.curve_publickey = curve.public.encode()
        socket.curve_secretkey = curve.secret.encode()
        # Else IPv4 alone is looked for: of a name with both, ZeroMQ takes one, and not every engine's port has both.
        socket.ipv6 = "[" in self._address
        # Another machine's network is not asked a hundred times a second. A host that is still to come does not answer
        # at all; the kernel would ask it after ever longer pauses.
        socket.reconnect_ivl, socket.reconnect_ivl_max, socket.connect_timeout = 100, 1000, 5000
        # Answered by ZeroMQ's I/O thread, however long a step takes, but behind the frame that is on its way.
        socket.heartbeat_ivl = max(1, int(self._peer_timeout * 250))
        socket.heartbeat_timeout = max(1, int(self._peer_timeout * 750))

    def _on_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return
            # 16 bits of event and 32 of value (zmq_socket_monitor(3)); zmq.utils.monitor would import zmq.asyncio.
            kind, value = (int.from_bytes(part, sys.byteorder) for part in (event[:2], event[2:6]))
            if self._curve is not None and not self._joined:
                self._on_handshake(kind, value, self._curve)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._joined, self._broken_off = False, 0
                silent = f", or was silent for {self._peer_timeout:g} s (peer_timeout)" if self._curve else ""
                self._on_lost(f"the engine at {self._address} closed the connection{silent}")

    def _on_handshake(self, kind: int, value: int, curve: CurveKeys) -> None:
        """What happens before the engine lets us in. Where it fails otherwise than at first, ZeroMQ tries no more."""
        other = f"server_public_key={curve.server!r} is not the key of what answers at {self._address}"
        match kind:
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._broken_off += 1
                if self._broken_off >= _BROKEN_OFF:
                    self._on_lost(
                        AccessDenied(f"{other}, which breaks off each handshake; or it is no engine of octavo")
                    )
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                own = "made up for want of a secret_key" if curve.made_up else "of this client"
                self._on_lost(
                    AccessDenied(
                        f"the engine at {self._address} does not let this client in: public_key={curve.public!r}, "
                        f"{own}, is not listed there (octavo engine --clients)"
                    )
                )
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL if value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
                self._on_lost(AccessDenied(other))
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._on_lost(ProtocolMismatch(f"what answers at {self._address} speaks ZeroMQ without CURVE keys"))
            case zmq.EVENT_DISCONNECTED if not self._broken_off:
                self._on_lost(ProtocolMismatch(f"what answers at {self._address} does not speak ZeroMQ"))
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._joined = True
            case zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_DELAYED:
                self._found = True
            case zmq.EVENT_CONNECT_RETRIED if not self._found:
                self._on_not_found()

    def _on_not_found(self) -> None:
        """The host's name has no IPv4 address. It may have one of IPv6, and some name server yet be on its way."""
        self._retries += 1
        self._on_lost(f"the host of {self._address} is not known")
        if self._retries == 2 and self._socket is not None:
            self._socket.disconnect(self._address)
            self._socket.ipv6 = True
            self._socket.connect(self._address)

    def send(self, frame: bytes) -> None:
        if self._curve is not None and len(frame) > wire.MAX_TCP_FRAME:
            raise InvalidRequest(f"the request takes {len(frame)} bytes, over tcp at most {wire.MAX_TCP_FRAME} go")
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
