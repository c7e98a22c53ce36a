"""`python -m octavo_engine`: one engine process, spawned by a client or shared by several.

Nothing heavy is imported before the parent is watched: the engine must die with its parent while it loads, too.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading

__all__ = ["main"]


_BIND = "ipc:///path/to/socket, or tcp://host:port (port 0: a free one)"
_KEYS = ("keys", "clients", "allow_any_client", "peer_timeout")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="octavo engine",
        description="Run an engine that several processes join with octavo.AsyncClient.connect(ADDRESS).",
    )
    parser.add_argument("--model", help="a local folder, a GGUF file, or a hub id")
    parser.add_argument("--bind", required=True, metavar="ADDRESS", help=_BIND)
    parser.add_argument("--options", default="{}", metavar="JSON", help="fields of octavo.EngineOptions")
    parser.add_argument("--import-path", default="", metavar="A:B", help="where logits_processors are looked for, too")
    tcp = parser.add_argument_group("tcp", "Encrypted (CURVE); a client is let in by its key.")
    # None where not given, so that the defaults are those of keys.curve_of.
    tcp.add_argument("--keys", metavar="PATH", help="of `octavo keys`: a folder, or the engine's own NAME.key_secret")
    tcp.add_argument("--clients", metavar="PATH", help="a folder of NAME.key, or a file of public keys; default --keys")
    tcp.add_argument("--allow-any-client", action="store_true", default=None, help="who knows the engine's public key")
    tcp.add_argument("--peer-timeout", type=float, metavar="S", help="a client that is silent so long has gone: 30")
    parser.add_argument("--parent-fd", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def _die_with_parent(fd: int) -> None:
    """Exit at once when the write end of the pipe `fd` is closed, which the kernel does however the parent died.

    PR_SET_PDEATHSIG would not do: it fires when the thread that spawned us ends.
    """

    def watch() -> None:
        while os.read(fd, 1):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="octavo-parent", daemon=True).start()


def main() -> int:
    """Run until drained, signalled, or the parent dies. Exit status 0 on a clean end, 1 on an error."""
    arguments = _arguments()
    spawned = arguments.parent_fd is not None
    if spawned:
        # Ctrl-C in a terminal reaches the whole process group, SIGTERM a whole service (systemd): what they mean is the
        # parent's to say, which may let running requests end. Of SIGTERM see serve; it is blocked before any thread is.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        _die_with_parent(arguments.parent_fd)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Behind the engine's own, which nothing there may shadow.
    sys.path += [path for path in arguments.import_path.split(os.pathsep) if path and path not in sys.path]
    from octavo_engine.serve import serve

    keys = {name: value for name in _KEYS if (value := getattr(arguments, name)) is not None}
    return serve(arguments.bind, arguments.options, model=arguments.model, spawned=spawned, keys=keys)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Worker threads hold nothing that needs a clean-up, and torch's own exit costs 0.2 s.
    os._exit(status)
