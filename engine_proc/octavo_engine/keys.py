"""The engine's own key and those of the clients that may join over tcp: where they are read, and what is refused.

A folder as `octavo keys` makes it holds the engine's pair in engine.key_secret and a certificate NAME.key for each
client. Certificates are ZeroMQ's (zmq.auth, czmq's zcert); a list of clients may also be a file with a public key a
line, whatever follows it being a name. The list is read again at each handshake: who is added is let in from then on,
who is taken out is not let in any more (a client that is there stays).
"""

from __future__ import annotations

import logging
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from octavo_engine.mailbox import Curve, public_key, read_certificate

__all__ = ["BadKeys", "Guests", "curve_of"]

log = logging.getLogger("octavo.engine")

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # Z85, rfc.zeromq.org/spec/32
_OWN = "engine.key_secret"
_LONGEST = 86400.0  # seconds
_LOG_EVERY = 1.0  # seconds


class BadKeys(Exception):
    """What --keys and --clients name can't be used."""


def curve_of(
    keys: str | None = None,
    clients: str | None = None,
    *,
    variables: tuple[str, str] = ("", ""),
    allow_any_client: bool = False,
    peer_timeout: float = 30.0,
) -> Curve | None:
    """What --keys and --clients stand for; None where no key is given. Raises BadKeys.

    keys: the file of the engine's own pair, or a folder with it and the clients' certificates. clients: a folder or a
    file of theirs alone. variables: in place of the two the keys themselves (config.key_variables).
    """
    own, public = _own_pair(keys, variables[0])
    if own is None:
        if clients or allow_any_client:
            raise BadKeys("--clients and --allow-any-client go with --keys, the engine's own")
        return None
    if not 0 < peer_timeout <= _LONGEST:
        raise BadKeys(f"--peer-timeout={peer_timeout:g}: seconds, more than 0 and at most {_LONGEST:g}")
    if allow_any_client:
        if clients:
            raise BadKeys(f"--clients={clients!r}: not with --allow-any-client, which lets everybody in")
        guests = Guests(None, "any client")
    elif clients or (keys and not variables[1] and Path(keys).is_dir()):
        path = Path(clients or keys or "")
        guests = Guests(lambda: _listed(path) - {public}, f"those of {path}")
    elif variables[1]:
        given = frozenset(variables[1].split())
        if wrong := [key for key in given if not _KEY.fullmatch(key)]:
            raise BadKeys(f"OCTAVO_CLIENT_KEYS: public keys of 40 characters, with blanks between; one is {wrong[0]!r}")
        guests = Guests(lambda: given, "those of OCTAVO_CLIENT_KEYS")
    else:
        raise BadKeys("--clients: a folder of their certificates or a file of their public keys says who may join")
    log.info("the engine's public key is %s; let in: %s", public, guests)
    return Curve(own, guests.lets_in, guests.turned_away, peer_timeout)


def _own_pair(keys: str | None, variable: str) -> tuple[str | None, str]:
    """Secret and public key of the engine."""
    if keys is None:
        if not variable:
            return None, ""
        secret, name = variable.strip(), "OCTAVO_SECRET_KEY"
    else:
        path = Path(keys)
        path = path / _OWN if path.is_dir() else path
        secret, name = _secret(path), f"--keys={keys!r}"
    try:
        return secret, public_key(secret)
    except ValueError:
        raise BadKeys(f"{name}: a secret key of 40 characters of Z85, as `octavo keys` makes it") from None


def _secret(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        secret = read_certificate(str(path))[1]
    except (OSError, ValueError) as error:
        raise BadKeys(f"--keys: a certificate with the engine's secret key, or a folder with {_OWN}: {error}") from None
    if secret is None:
        raise BadKeys(f"--keys: {path} has no secret key; that of a pair is in NAME.key_secret")
    if mode & 0o077:
        raise BadKeys(f"--keys: {path} has mode {mode:04o}, so others than its owner can use it: chmod 600 {path}")
    return secret


def _listed(path: Path) -> frozenset[str]:
    """The public keys of a folder's certificates NAME.key, or of a file. Raises BadKeys."""
    files = sorted(path.glob("*.key")) if path.is_dir() else [path]
    return frozenset(key for file in files for key in _keys_of(file))


def _keys_of(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8")
        if "public-key" in text:
            keys = [read_certificate(str(file))[0]]
        else:
            lines = [line.split(None, 1)[0] for line in text.splitlines() if line.strip()]
            keys = [word for word in lines if _KEY.fullmatch(word) or not word.startswith("#")]
    except (OSError, ValueError) as error:
        raise BadKeys(f"--clients: a folder of certificates or a file of public keys: {file}: {error}") from None
    if wrong := [key for key in keys if not _KEY.fullmatch(key)]:
        raise BadKeys(f"--clients: public keys of 40 characters of Z85; {file} has {wrong[0]!r}")
    return keys


class Guests:
    """Who is let in. read: the keys that are listed now, may raise BadKeys; None: everybody. `name` is for the log.

    Raises BadKeys where the list can't be read at the start; later the last one that could be read stands.
    """

    def __init__(self, read: Callable[[], frozenset[str]] | None, name: str) -> None:
        self._read, self._name = read, name
        self._listed = read() if read is not None else frozenset()
        self._logged_at, self._unlogged = -_LOG_EVERY, 0
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self._name if self._read is None else f"{self._name}, {len(self._listed)} at the moment"

    def lets_in(self, key: str, host: str) -> bool:
        """In the door's thread. Nothing may be raised there: nobody would be let in from then on."""
        if self._read is None:
            return True
        try:
            self._listed = self._read()
        except BadKeys as error:
            self._say(f"the list of clients is left as it was: {error}")
        if key not in self._listed:
            self._say(f"a client on {host} was not let in: its public key {key} is none of {self._name}")
        return key in self._listed

    def turned_away(self, why: str) -> None:
        """In the engine's thread."""
        self._say(f"somebody was not let in: {why}")

    def _say(self, text: str) -> None:
        """One line a second at most: who is not let in may come again and again."""
        with self._lock:
            now = time.monotonic()
            if now - self._logged_at < _LOG_EVERY:
                self._unlogged += 1
                return
            more, self._logged_at, self._unlogged = self._unlogged, now, 0
        log.warning("%s%s", text, f" (and {more} more since the last such line)" if more else "")
