"""Where an engine is joined: a Unix socket's path, looked at before it is bound and given back afterwards."""

from __future__ import annotations

import os
import socket
import stat

__all__ = ["BadAddress", "Place"]

_LONGEST = 107  # bytes of a Unix socket's path, unix(7)


class BadAddress(Exception):
    """Nothing can be bound there, or nothing should be."""


class Place:
    """address: as --bind gives it. Raises BadAddress, before anything there has been touched: ZeroMQ takes away
    whatever file it finds, be it another engine's socket or no socket at all."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.path = address.removeprefix("ipc://")
        self._ours: tuple[int, int] | None = None
        if address.startswith("tcp://"):
            raise self._bad("tcp needs encryption, which the engine does not speak; bind ipc:// and tunnel to it")
        if not address.startswith("ipc://") or not self.path:
            raise self._bad("ipc:///path/to/socket")
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
