"""The engine's end of the wire: one ROUTER socket, read and written by the engine thread alone.

A ROUTER drops messages silently at its high-water mark, so the mark is lifted (what is queued is bounded by admission),
and silently for a peer that has gone, so ROUTER_MANDATORY turns that into an error: the client is then reported lost.
A client that was killed says no Goodbye, and nothing may be to be sent to it for long: its connection's end, which a
monitor tells, has all that were heard of sent an empty frame, and Goodbye is said for those that can't be reached.

Over tcp every frame is encrypted (CURVE, rfc.zeromq.org/spec/26) and a client is let in by its key. Who is not learns
that ZeroMQ with CURVE is spoken here, as the protocol's greeting says, and nothing else. A client that vanishes without
ending its connection (its machine, or the network) is noticed by ZeroMQ's heartbeats, that its I/O thread answers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import zmq
from zmq.utils import z85

from octavo import wire
from octavo_engine.address import BadAddress, place

__all__ = ["Client", "Curve", "Mailbox", "public_key", "read_certificate", "wrong_protocol"]

Client = bytes
"""A client's routing id, unique while it is connected."""

# Frames that one `receive` takes, more than can start in a step; and on, for a share of the time that the loop took for
# its step: behind a thousand requests that were cancelled another one waited 8.6 s for rounds of 256 frames, and waits
# 0.5 to 1.8 s so. Without a bound the loop stood still for as long as one client sent faster than frames are read (16 s
# for 3 s of malformed ones, measured).
_MOST = 256
_SHARE = 1 / 8
# Plain numbers: combining the enumerations that they are of takes longer than the call.
_READABLE, _NOBLOCK, _MORE = int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_LONGEST = 3600.0  # seconds to wait: a poll's milliseconds are 32 bits
# Seconds from the end of a connection to the look at who has gone: ZeroMQ tells of it before it lets go of the peer.
_SETTLED = 0.1


def wrong_protocol(spoken: int) -> wire.Dying:
    """The answer to a Hello of another version."""
    text = f"the engine speaks protocol {wire.PROTOCOL_VERSION}, the client {spoken}"
    return wire.Dying("protocol", text + "; install the same octavo on both sides")


class Curve(NamedTuple):
    """How an engine is joined over tcp. Keys are 40 characters of Z85.

    lets_in(public key, host): may this client join? Asked at each handshake, in a thread of its own. turned_away(why):
    a handshake failed before that. peer_timeout: seconds without a sign of life after which a client has gone.
    """

    secret_key: str
    lets_in: Callable[[str, str], bool]
    turned_away: Callable[[str], None]
    peer_timeout: float


def public_key(secret_key: str) -> str:
    """That of a pair. Raises ValueError for what is no key."""
    try:
        return zmq.curve_public(secret_key.encode()).decode()
    except zmq.ZMQError as error:
        raise ValueError(str(error)) from None


def read_certificate(path: str) -> tuple[str, str | None]:
    """The public key, and the secret one if it is there, of a certificate in ZeroMQ's format (zmq.auth).

    Raises ValueError where there is none in the file, and OSError.
    """
    from zmq.auth import load_certificate

    try:
        public, secret = load_certificate(path)
    except IndexError:
        raise ValueError(f"a key without a value in {path}") from None
    return public.decode(), None if secret is None else secret.decode()


class _Door(threading.Thread):
    """Answers ZeroMQ's question whether a client's key is known (ZAP, rfc.zeromq.org/spec/27).

    In a thread of its own, so that who joins waits neither for a step nor for the model to be loaded, and no step waits
    for a list of keys that is read. Bound on construction, before any client can come; ends with the context.
    """

    DOMAIN = b"octavo"

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], lets_in: Callable[[str, str], bool]) -> None:
        super().__init__(name="octavo-door", daemon=True)
        self._lets_in = lets_in
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")

    def run(self) -> None:
        try:
            while True:
                version, request, _, host, _, mechanism, *credentials = self._socket.recv_multipart()
                known = mechanism == b"CURVE" and self._lets_in(z85.encode(credentials[0]).decode(), host.decode())
                self._socket.send_multipart([version, request, b"200" if known else b"400", b"", b"", b""])
        except zmq.ContextTerminated:
            self._socket.close()


def _why_failed(code: int) -> str:
    """The value of a failed handshake's event."""
    if code == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "its server_public_key is not this engine's"
    if code == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "it speaks without CURVE"
    return f"its handshake is none ({code:#x})"


class Mailbox:
    """Frames in, frames out. `on_malformed(client, error)` is told of frames that can't be decoded and are dropped;
    of the first, second, fourth, eighth, ... one, so that a client that sends nothing else does not fill the log.
    curve: for tcp, which is not spoken without. address: where clients join, with the port that was taken.
    Raises BadAddress."""

    def __init__(
        self,
        address: str,
        on_malformed: Callable[[Client, str], None] | None = None,
        curve: Curve | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._place = place(address, keyed=curve is not None)
        self._curve = curve
        self._clock = clock
        self._read = clock()  # when the last round of frames had been taken
        self.on_malformed = on_malformed
        self.num_malformed = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.router_mandatory = True
        # That of a ROUTER does not say whose connection it was.
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        self._heard: set[Client] = set()
        self._look_at: float | None = None
        door = None if curve is None else self._secure(curve)
        self._socket.ipv6 = self._place.ipv6
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise BadAddress(f"--bind={address!r}: one that can be bound: {error.strerror}") from None
        if door is not None:
            door.start()
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._place.bound()
        # Other threads (tokenising, signals) end the engine thread's poll by writing here.
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _secure(self, curve: Curve) -> _Door:
        """Encrypt, let in who is known, notice who vanished."""
        socket = self._socket
        socket.curve_server = True
        socket.curve_secretkey = curve.secret_key.encode()
        socket.zap_domain = _Door.DOMAIN
        # Without a door nobody is let in; ZeroMQ would let everybody in.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_TCP_FRAME)
        # The answer waits behind the frame that is on its way, so most of the time is for that.
        socket.heartbeat_ivl = max(1, int(curve.peer_timeout * 250))
        socket.heartbeat_timeout = max(1, int(curve.peer_timeout * 750))
        return _Door(self._context, curve.lets_in)

    def wake(self) -> None:
        """End a waiting `receive` early. Safe from any thread and from a signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    def receive(self, timeout: float | None) -> Iterator[tuple[Client, Any]]:
        """The messages of the frames there are, within the bounds of a round, after waiting for one or for `wake` up to
        timeout seconds (or _LONGEST).

        timeout None: wait for ever; 0: not at all.
        """
        share = _SHARE * (self._clock() - self._read)
        if timeout is None or timeout > 0:
            if self._look_at is not None:
                timeout = min(_LONGEST if timeout is None else timeout, max(0.0, self._look_at - time.monotonic()))
            milliseconds = None if timeout is None else max(1, int(min(timeout, _LONGEST) * 1000))
            self._poller.poll(milliseconds)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        yield from self._frames(self._clock() + share)
        yield from self._departed()
        self._read = self._clock()

    def _frames(self, until: float) -> Iterator[tuple[Client, Any]]:
        # Asking costs less than the exception that tells that nothing is there, and that is the answer at most steps.
        for taken in itertools.count():
            if taken >= _MOST and self._clock() >= until:
                return
            if not int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE:
                return
            try:
                client, frame = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:  # not two parts: nothing of ours
                continue
            self._heard.add(client)
            try:
                messages = wire.decode_to_engine(frame)
            except (msgspec.DecodeError, ValueError) as error:
                self.num_malformed += 1
                if self.on_malformed is not None and self.num_malformed.bit_count() == 1:
                    self.on_malformed(client, str(error))
                continue
            for message in messages:
                yield client, message

    def _departed(self) -> Iterator[tuple[Client, Any]]:
        """Goodbye, for each client that has gone without one."""
        while int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = self._monitor.recv_multipart(zmq.NOBLOCK)[0]
            # 16 bits of event and 32 of value, zmq_socket_monitor(3)
            if int.from_bytes(event[:2], sys.byteorder) == zmq.EVENT_DISCONNECTED:
                self._look_at = time.monotonic() + _SETTLED
            elif self._curve is not None:
                self._curve.turned_away(_why_failed(int.from_bytes(event[2:6], sys.byteorder)))
        if self._look_at is not None and time.monotonic() >= self._look_at:
            self._look_at = None
            for client in list(self._heard):
                if not self.send(client, []):
                    yield client, wire.Goodbye()

    def send(self, client: Client, messages: list[Any]) -> bool:
        """One frame to one client; False if it has gone."""
        frame = wire.encode(messages)
        try:
            self._socket.send(client, _MORE)
            self._socket.send(frame, _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                self._heard.discard(client)
                return False
            raise
        return True

    def close(self, linger_seconds: float = 1.0) -> None:
        """Let what was sent leave, then close."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=int(linger_seconds * 1000))
        self._context.term()
        self._place.remove()
        os.close(self._wake_fd)
