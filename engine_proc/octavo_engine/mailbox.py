"""The engine's end of the wire: one ROUTER socket, read and written by the engine thread alone.

A ROUTER drops messages silently at its high-water mark, so the mark is lifted (what is queued is bounded by admission),
and silently for a peer that has gone, so ROUTER_MANDATORY turns that into an error: the client is then reported lost.
A client that was killed says no Goodbye, and nothing may be to be sent to it for long: its connection's end, which a
monitor tells, has all that were heard of sent an empty frame, and Goodbye is said for those that can't be reached.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import zmq

from octavo import wire
from octavo_engine.address import BadAddress, Place

__all__ = ["Client", "Mailbox", "wrong_protocol"]

Client = bytes
"""A client's routing id, unique while it is connected."""

# Frames that one `receive` takes, more than can start in a step. Without a bound the loop stood still for as long as
# one client sent faster than frames are read (16 s for 3 s of malformed ones, measured).
_MOST = 256
# Plain numbers: combining the enumerations that they are of takes longer than the call.
_READABLE, _NOBLOCK, _MORE = int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_LONGEST = 3600.0  # seconds to wait: a poll's milliseconds are 32 bits
# Seconds between looks for the end of a connection, and from one to the look at who has gone: ZeroMQ tells of it before
# it lets go of the peer.
_SETTLED = 0.1


def wrong_protocol(spoken: int) -> wire.Dying:
    """The answer to a Hello of another version."""
    text = f"the engine speaks protocol {wire.PROTOCOL_VERSION}, the client {spoken}"
    return wire.Dying("protocol", text + "; install the same octavo on both sides")


class Mailbox:
    """Frames in, frames out. `on_malformed(client, error)` is told of frames that can't be decoded and are dropped;
    of the first, second, fourth, eighth, ... one, so that a client that sends nothing else does not fill the log.
    Raises BadAddress."""

    def __init__(self, address: str, on_malformed: Callable[[Client, str], None] | None = None) -> None:
        self._place = Place(address)
        self.on_malformed = on_malformed
        self.num_malformed = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.router_mandatory = True
        # That of a ROUTER does not say whose connection it was.
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._heard: set[Client] = set()
        self._look_at: float | None = None
        self._listen_at = 0.0
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise BadAddress(f"--bind={address!r}: one that can be bound: {error.strerror}") from None
        self._place.bound()
        # Other threads (tokenising, signals) end the engine thread's poll by writing here.
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def wake(self) -> None:
        """End a waiting `receive` early. Safe from any thread and from a signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    def receive(self, timeout: float | None) -> Iterator[tuple[Client, Any]]:
        """The messages of the frames there are, of _MOST at most, after waiting for one or for `wake` up to timeout
        seconds (or _LONGEST).

        timeout None: wait for ever; 0: not at all.
        """
        if timeout is None or timeout > 0:
            if self._look_at is not None:
                timeout = min(_LONGEST if timeout is None else timeout, max(0.0, self._look_at - time.monotonic()))
            milliseconds = None if timeout is None else max(1, int(min(timeout, _LONGEST) * 1000))
            self._poller.poll(milliseconds)
            self._listen_at = 0.0  # it may have been that which ended it
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        yield from self._frames()
        yield from self._departed()

    def _frames(self) -> Iterator[tuple[Client, Any]]:
        # Asking costs less than the exception that tells that nothing is there, and that is the answer at most steps.
        for _ in range(_MOST):
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
        now = time.monotonic()
        if now < self._listen_at:
            return
        self._listen_at = now + _SETTLED
        while int(self._monitor.getsockopt(zmq.EVENTS)) & _READABLE:
            self._monitor.recv_multipart(zmq.NOBLOCK)
            self._look_at = now + _SETTLED
        if self._look_at is not None and now >= self._look_at:
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
