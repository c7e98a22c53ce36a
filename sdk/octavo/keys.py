"""`octavo keys`: pairs of keys for an engine that is joined over tcp, and for its clients."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from octavo.errors import InvalidOption

__all__ = ["add_arguments", "make_keys"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the certificates go; made, for its owner alone, if not there")
    names = "one pair each: of the engine (named engine) or of a client; default: engine client"
    parser.add_argument("names", nargs="*", metavar="name", default=["engine", "client"], help=names)


def make_keys(options: argparse.Namespace) -> None:
    """A pair for each of `names` in `folder`: NAME.key holds the public key, NAME.key_secret both, in ZeroMQ's format
    (zmq.auth, czmq's zcert), both of mode 0600. Prints the public keys. None that is there is replaced.

    Raises InvalidOption.
    """
    from octavo.transport import new_certificates

    folder: Path = options.folder
    for name in options.names:
        if not re.fullmatch(r"\w[\w.@-]*", name):
            raise InvalidOption("name", name, "letters, digits, _ . @ and -, beginning with one of the first three")
        for path in (folder / f"{name}.key", folder / f"{name}.key_secret"):
            if path.exists():
                raise InvalidOption("name", name, f"one that is not there yet: {path} is, and stays")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in options.names:
            # Anybody could read them where they are made, but for the folder of mode 0700 around them.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".keys-") as private:
                public_key = new_certificates(private, name)
                for made in Path(private).iterdir():
                    made.chmod(0o600)
                    made.rename(folder / made.name)
            print(f"{folder / name}.key_secret: public key {public_key}")
    except OSError as error:
        raise InvalidOption("folder", str(folder), f"one that can be written to: {error}") from None
