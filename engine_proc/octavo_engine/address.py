"""Where an engine is joined: a port, or a socket's path, looked at before it is bound and given back afterwards."""

from __future__ import annotations

import os
import re
import socket
import stat

__all__ = ["BadAddress", "Place", "Port", "place"]

_LONGEST = 107  # bytes of a Unix socket's path, unix(7)


class BadAddress(Exception):
    """Nothing can be bound there, or nothing should be."""


def place(address: str, *, keyed: bool) -> Place | Port:
    """address: as --bind gives it. keyed: there are keys to encrypt with. Raises BadAddress."""
    return Port(address, keyed) if address.startswith("tcp://") else Place(address)


class Port:
    """tcp://host:port of this machine: an interface's address or name, or * for all; port 0 (or *) is a free one.

    ipv6: the host is an IPv6 address, in brackets; [::] is all, of IPv4 too.
    """

    def __init__(self, address: str, keyed: bool) -> None:
        found = re.fullmatch(r"tcp://(\[[^\[\]]+\]|[^\[\]:/]+):(\*|\d{1,5})", address)
        if found is None or (found[2] != "*" and int(found[2]) > 65535):
            raise BadAddress(f"--bind={address!r}: tcp://host:port, as in tcp://0.0.0.0:5555 or tcp://[::1]:0")
        if not keyed:
            raise BadAddress(
                f"--bind={address!r}: with keys alone, since nothing goes over tcp in the clear: --keys FOLDER, with "
                "what `octavo keys FOLDER` makes"
            )
        self.ipv6 = found[1].startswith("[")

    def bound(self) -> None:
        """It is the kernel's to give back."""

    remove = bound


class Place:
    """A Unix socket. Raises BadAddress, before anything there has been touched: ZeroMQ takes away whatever file it
    finds, be it another engine's socket or no socket at all."""

    ipv6 = False

    def __init__(self, address: str) -> None:
        self.address = address
        self.path = address.removeprefix("ipc://")
        self._ours: tuple[int, int] | None = None
        if not address.startswith("ipc://") or not self.path:
            raise self._bad("ipc:///path/to/socket, or tcp://host:port with --keys")
        if self.path.startswith("@"):
            raise self._bad("a path: every user of the machine may join at an abstract name")
        if len(os.fsencode(self.path)) > _LONGEST:
            raise self._bad(f"a path of at most {_LONGEST} bytes")
        self._check_free()

    def _bad(self, allowed: str) -> BadAddress:
        return BadAddress(f"--bind={self.address!r}: {allowed}")

    def _check_free(self) -> None:
        folder = os.path.dirname(self.path) or "."
        if not os.path.isdir(folder):
            raise self._bad(f"a path in a folder that is there: {folder} is none")
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._bad(f"a path that can be bound: {error}") from None
        if not stat.S_ISSOCK(mode):
            raise self._bad("a path where nothing is, or a socket that nobody listens at")
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(1)
            try:
                other.connect(self.path)
            except OSError:  # left by one that was killed
                return
        raise self._bad("an engine listens there already")

    def bound(self) -> None:
        """The socket there is ours."""
        found = os.lstat(self.path)
        self._ours = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Take it away, unless somebody else did or put another in its place."""
        try:
            found = os.lstat(self.path)
            if self._ours == (found.st_dev, found.st_ino):
                os.unlink(self.path)
        except OSError:  # its folder has gone, or may not be written to any more: nobody can join there
            return
