"""From options to a running engine: bind, load while answering Hello with Progress, then Core.run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from octavo import wire
from octavo.options import EngineOptions, replace
from octavo_engine import config
from octavo_engine.address import BadAddress
from octavo_engine.execution.errors import DeviceLost
from octavo_engine.greeter import Greeter, StartFailed
from octavo_engine.keys import BadKeys, curve_of
from octavo_engine.mailbox import Mailbox

if TYPE_CHECKING:
    from octavo_engine.core import Core

__all__ = ["serve"]

log = logging.getLogger("octavo.engine")

VERSION = config.VERSION

# What a lost device leaves: to free its tensors would end the process (execution.device), which ends soon anyway.
_left: list[object] = []


def serve(
    address: str, options_json: str, *, model: str | None, spawned: bool, keys: dict[str, Any] | None = None
) -> int:
    """Run one engine until it is drained or signalled; the process's exit status. keys: what keys.curve_of takes."""
    try:
        curve = None
        if address.startswith("tcp://"):
            curve = curve_of(**keys or {}, variables=config.key_variables())
        elif keys:
            raise BadKeys(f"{_flags(keys)}: only for --bind tcp://host:port; who may join at {address} is the folder's")
        mailbox = Mailbox(address, lambda client, error: log.warning("a malformed frame was dropped: %s", error), curve)
        if curve is not None:
            log.info("clients join at %s", mailbox.address)
    except (BadAddress, BadKeys) as error:
        log.error("%s", error)
        return 1
    greeter = Greeter(mailbox, owned=spawned)
    try:
        core = _start(options_json, model, greeter, owned=spawned)
    except Exception as error:
        code = error.code if isinstance(error, StartFailed) else "start_failed"
        log.error("%s", error, exc_info=None if isinstance(error, StartFailed) else error)
        if isinstance(error, DeviceLost):
            _left.append(error)
        greeter.farewell(wire.Dying(code, str(error) or type(error).__name__))
        mailbox.close()
        return 1
    _obey_signals(core, spawned)
    try:
        core.run()
    except Exception as error:
        log.exception("the engine failed")
        if isinstance(error, DeviceLost):
            _left.extend((error, core))
        for client in greeter.clients:
            with contextlib.suppress(Exception):  # it is dying: each client gets what can still be said
                mailbox.send(client, [last_words(error)])
        return 1
    finally:
        mailbox.close()
    return 0


def _flags(keys: dict[str, Any]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in keys)


def last_words(error: Exception) -> wire.Dying:
    """What the clients are told of an error that ended the loop."""
    if isinstance(error, DeviceLost):
        return wire.Dying("device_lost", str(error))
    return wire.Dying("internal", f"{type(error).__name__}: {error}")


def _start(options_json: str, model: str | None, greeter: Greeter, *, owned: bool) -> Core:
    options = _options(options_json, model)
    greeter("start", 0, 0, "importing torch")
    from octavo_engine.start import start

    return start(options, greeter, owned=owned)


def _options(options_json: str, model: str | None) -> EngineOptions:
    try:
        options = msgspec.json.decode(options_json, type=EngineOptions)
        if model is not None:
            options = replace(options, model=model)
    except (msgspec.DecodeError, ValueError) as error:
        raise StartFailed("invalid_option", str(error)) from error
    if not options.model:
        raise StartFailed("invalid_option", "model='': give a local folder, a GGUF file or a hub id")
    return options


def _obey_signals(core: Core, spawned: bool) -> None:
    """This process is the engine's own: SIGTERM (and Ctrl-C on a terminal) end it in good order; where it has a parent,
    that one's SIGTERM alone, and only who waits for a signal is told whose it is."""

    def drain(number: int, frame: Any) -> None:
        core.ask_drain()

    def wait() -> None:
        while True:
            sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
            if sender == os.getppid():
                core.ask_drain()
            else:
                log.warning("SIGTERM from process %d is left to pid %d, which started this", sender, os.getppid())

    if spawned:
        threading.Thread(target=wait, name="octavo-sigterm", daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)
