"""`--connect` of the commands: an engine that is joined, on this machine or another, instead of one that is started."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import msgspec

from octavo.client import AsyncClient
from octavo.errors import InvalidOption
from octavo.options import EngineOptions
from octavo.wire import Progress

__all__ = ["Joined", "add_arguments", "joined_of"]

_OURS = ("ready_timeout", "heartbeat_timeout")  # of EngineOptions, what the client itself heeds


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that somebody else runs; see AsyncClient.connect. Keys are the keys themselves."""

    address: str
    server_public_key: str | None = None
    secret_key: str | None = None
    peer_timeout: float = 30.0
    ready_timeout: float = 120.0
    heartbeat_timeout: float = 60.0

    async def connect(self, on_progress: Callable[[Progress], None] | None = None) -> AsyncClient:
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name != "address"}
        return await AsyncClient.connect(self.address, on_progress=on_progress, **given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("an engine that runs already (octavo engine)")
    group.add_argument("--connect", metavar="ADDRESS", help="join it: ipc:///path, or tcp://host:port with the keys")
    group.add_argument("--server-public-key", metavar="KEY", help="the engine's: 40 characters, or its NAME.key")
    secret = "this side's NAME.key_secret, of `octavo keys`, whose public key the engine knows"
    group.add_argument("--secret-key", type=Path, metavar="FILE", help=secret)
    gone = "an engine that is silent so long over tcp has gone; default 30"
    group.add_argument("--peer-timeout", type=float, default=30.0, metavar="S", help=gone)


def joined_of(options: argparse.Namespace, engine: EngineOptions) -> Joined | None:
    """What the command line says; None where an engine is to be started. Raises InvalidOption."""
    from octavo.transport import curve_keys

    if options.connect is None:
        if not engine.model:
            raise InvalidOption("model", "", "a local folder, a GGUF file, or a hub id; or --connect ADDRESS")
        for name in ("server_public_key", "secret_key"):
            if getattr(options, name) is not None:
                raise InvalidOption(f"--{name.replace('_', '-')}", getattr(options, name), "only with --connect")
        return None
    plain = EngineOptions()
    for field in msgspec.structs.fields(EngineOptions):
        value = getattr(engine, field.name)
        if field.name not in _OURS and value != getattr(plain, field.name):
            flag = "model" if field.name == "model" else f"--{field.name.replace('_', '-')}"
            raise InvalidOption(flag, value, "of an engine that is started; that of --connect has its own")
    server: str | Path | None = options.server_public_key
    if server is not None and Path(server).is_file():
        server = Path(server)
    keys = curve_keys(options.connect, server, None, options.secret_key)
    return Joined(
        address=options.connect,
        server_public_key=keys.server if keys else None,
        secret_key=keys.secret if keys else None,
        peer_timeout=options.peer_timeout,
        **{name: getattr(engine, name) for name in _OURS},
    )
