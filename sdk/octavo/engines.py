"""The two ways to have an engine: start one, or join one that somebody else runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from octavo import wire
from octavo.loop import Loop
from octavo.options import EngineOptions
from octavo.process import EngineProcess, engine_command, private_folder
from octavo.transport import CurveKeys, Transport, ZmqTransport

__all__ = ["JoinedEngine", "SpawnedEngine"]


class SpawnedEngine:
    """An engine of our own: a process, and a socket in a private folder."""

    knob = "EngineOptions.{}"

    def __init__(self, options: EngineOptions, command: Sequence[str] | None, share: bool = False) -> None:
        self._options = options
        self._share = share
        self._command = command
        self._folder: Path | None = None
        self._kept = False  # others know the address, and this engine is to be found there again
        self.address = ""
        self.process: EngineProcess | None = None
        self.transport: Transport | None = None

    def start(self, loop: Loop, on_dead: Callable[[str], None]) -> None:
        command = list(self._command) if self._command is not None else engine_command(self._options)
        self._folder = self._folder or private_folder()
        address = f"ipc://{self._folder}/engine.sock"
        self.address = address if self._share else ""
        self.transport = ZmqTransport(address)
        self.process = EngineProcess([*command, "--bind", address], loop, lambda: on_dead(""))

    async def end(self, send: Callable[[object], None], timeout: float) -> str:
        if self.process is None:
            return "gone"
        return await self.process.end(lambda: send(wire.Drain(abort=True)), timeout)

    def connected(self) -> None:
        """Unless somebody else is to come: a killed host could not clean up any more."""
        self._kept = False
        if not self._share:
            self.remove_files()

    def again(self) -> SpawnedEngine:
        """Another one like it, at the same address where others join it."""
        engine = SpawnedEngine(self._options, self._command, self._share)
        if self._share:
            engine._folder, self._folder = self._folder, None
            engine.address, engine._kept = self.address, True
        return engine

    def remove_files(self, *, last: bool = False) -> None:
        """last: none is started there again, though it failed to start."""
        if self._folder is not None and (last or not self._kept):
            shutil.rmtree(self._folder, ignore_errors=True)


class JoinedEngine:
    """Somebody else's engine: only a connection."""

    process = None
    knob = "{} of AsyncClient.connect"

    def __init__(
        self, address: str, curve: CurveKeys | None, transport: Transport | None = None, *, peer_timeout: float = 30.0
    ) -> None:
        self.address = address
        self._curve, self._given, self._peer_timeout = curve, transport, peer_timeout
        self.transport: Transport = transport or ZmqTransport(
            address, curve=curve, watch_peer=True, peer_timeout=peer_timeout
        )

    def start(self, loop: Loop, on_dead: Callable[[str], None]) -> None:
        pass

    async def end(self, send: Callable[[object], None], timeout: float) -> str:
        send(wire.Goodbye())
        return "left"

    def connected(self) -> None:
        pass

    def again(self) -> JoinedEngine:
        """Another connection to it."""
        return JoinedEngine(self.address, self._curve, self._given, peer_timeout=self._peer_timeout)

    def remove_files(self, *, last: bool = False) -> None:
        pass
