"""An engine process without a model that speaks the wire and misbehaves on demand.

Started as the client starts the real one, with behaviours as further arguments; prompts are commands, see `Fake.begin`.
What it saw is told in its Stats.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict

import zmq

from octavo import wire
from octavo.options import EngineOptions


def watch_parent(fd: int) -> None:
    def watch() -> None:
        while os.read(fd, 1):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class Fake:
    def __init__(self, address: str, behaviours: set[str], secret_key: str | None = None) -> None:
        self.behaviours = behaviours
        self.socket = zmq.Context().socket(zmq.ROUTER)
        if secret_key is not None:
            self.socket.curve_server, self.socket.curve_secretkey = True, secret_key.encode()
        self.socket.linger = 200
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self.socket.bind(address)
        print(f"at {self.socket.last_endpoint.decode()}", flush=True)
        self.running: dict[tuple[bytes, int], int] = {}
        self.counts: defaultdict[bytes, Counter[str]] = defaultdict(Counter)  # what each client did
        self.goodbyes = 0
        self.until_heartbeat: dict[tuple[bytes, int], int] = {}
        self.draining = False

    def send(self, client: bytes, *messages: object) -> None:
        self.socket.send_multipart((client, wire.encode(list(messages))))

    def run(self) -> None:
        while not self.draining:
            if not self.running or self.socket.poll(2):
                client, frame = self.socket.recv_multipart()
                for message in wire.decode_to_engine(frame):
                    self.take(client, message)
            else:
                self.step()
        self.socket.close()

    def take(self, client: bytes, message: object) -> None:
        counts = self.counts[client]
        match message:
            case wire.Hello():
                counts["hellos"] += 1
                self.hello(client)
            case wire.Generate():
                counts["requests"] += 1
                self.begin(client, message)
            case wire.Abort(ids):
                for request_id in ids:
                    known = self.running.pop((client, request_id), None)
                    counts["aborted" if known is not None else "unknown_aborts"] += 1
                    if known is not None:
                        self.finish(client, request_id, "abort", known)
            case wire.StatsRequest(token):
                if token == 0:  # a caller's are numbered from 1
                    counts["heartbeats"] += 1
                    self.heartbeat(client, counts["heartbeats"])
                names = ("hellos", "requests", "aborted", "unknown_aborts", "heartbeats")
                values = {name: float(counts[name]) for name in names}
                values["running"] = float(sum(key[0] == client for key in self.running))
                values["goodbyes"] = float(self.goodbyes)
                self.send(client, wire.Stats(token, values))
            case wire.Drain():
                if "ignore-drain" not in self.behaviours:
                    self.draining = True
            case wire.Goodbye():
                self.goodbyes += 1
                for key in [key for key in self.running if key[0] == client]:
                    del self.running[key]

    def hello(self, client: bytes) -> None:
        self.send(client, wire.Progress("load", 1, 2, "weights"))
        if "never-ready" in self.behaviours:
            return
        if "garbage" in self.behaviours:
            self.socket.send_multipart((client, b"\xc1 this is no frame"))
            return
        for code in ("model", "invalid_option", "protocol", "start_failed"):
            if f"dying-{code}" in self.behaviours:
                wrong = "max_model_len=5000: the model has positions for 2048 tokens"
                self.send(client, wire.Dying(code, wrong if code == "invalid_option" else f"as asked: {code}"))
                self.socket.close()
                self.socket.context.term()
                sys.exit(1)
        protocol = 999 if "old-protocol" in self.behaviours else wire.PROTOCOL_VERSION
        options = EngineOptions(model="fake", dtype="float32", max_model_len=2048)
        self.send(client, wire.Ready(protocol, os.getpid(), "0.1.0", options, "Fake", True, True, 1000, 64, (2,)))

    def heartbeat(self, client: bytes, number: int) -> None:
        for (owner, request_id), last in list(self.until_heartbeat.items()):
            if owner == client and number >= last:
                del self.until_heartbeat[owner, request_id]
                self.finish(client, request_id, "stop", 0)

    def finish(self, client: bytes, request_id: int, reason: str, tokens: int) -> None:
        choices = (wire.Choice(0, reason, None, None),)
        self.send(client, wire.Finished(request_id, choices, (1, 2, 3), wire.Usage(3, 0, tokens, 0.0, 0.0, 0.0)))

    def begin(self, client: bytes, message: wire.Generate) -> None:
        """`words N`: N deltas; `forever`; `nothing`; `fail CODE`, after two deltas with `partial`; `die STATUS`;
        `garbage`; `heartbeats N`: ends at the client's Nth heartbeat; anything else is echoed."""
        request_id = message.request_id
        text = message.text or " ".join(map(str, message.token_ids or ()))
        if message.messages is not None:
            text = "|".join(f"{m.role}:{m.content}" for m in message.messages)
        command, *rest = text.split() or [""]
        if command == "words":
            for i in range(int(rest[0])):
                last = i + 1 == int(rest[0])
                self.send(client, wire.Deltas([self.delta(request_id, i, "length" if last else None)]))
            self.finish(client, request_id, "length", int(rest[0]))
        elif command == "forever":
            self.running[client, request_id] = 0
        elif command == "nothing":
            self.running[client, request_id] = -(1 << 60)
        elif command == "heartbeats":
            self.until_heartbeat[client, request_id] = int(rest[0])
        elif command == "fail":
            if "partial" in rest:
                self.send(client, wire.Deltas([self.delta(request_id, i, None) for i in range(2)]))
            which = "first_token" if rest[0] == "timeout" else None
            self.send(client, wire.Failed(request_id, rest[0], f"as asked: {rest[0]}", which, (1,), wire.Usage(1)))
        elif command == "die":
            print("dying as asked", file=sys.stderr, flush=True)
            os._exit(int(rest[0]))
        elif command == "dying":
            self.send(client, wire.Dying(rest[0] if rest else "internal", "IndexError: as asked"))
            self.socket.close()
            self.socket.context.term()
            os._exit(1)
        elif command == "garbage":
            self.socket.send_multipart((client, b"\x93\x01\x02"))
        else:
            self.send(client, wire.Deltas([wire.Delta(request_id, 0, text, (7,), None, "stop")]))
            self.finish(client, request_id, "stop", 1)

    @staticmethod
    def delta(request_id: int, number: int, reason: str | None) -> wire.Delta:
        return wire.Delta(request_id, 0, f"w{number} ", (number,), None, reason)

    def step(self) -> None:
        by_client: dict[bytes, list[wire.Delta]] = {}
        for (client, request_id), number in self.running.items():
            if number >= 0:
                by_client.setdefault(client, []).append(self.delta(request_id, number, None))
            self.running[client, request_id] = number + 1
        for client, deltas in by_client.items():
            self.send(client, wire.Deltas(deltas))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviours", nargs="*")
    parser.add_argument("--bind", required=True)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--secret-key")
    arguments = parser.parse_args()
    behaviours = set(arguments.behaviours)
    if arguments.parent_fd is not None:
        watch_parent(arguments.parent_fd)
    if "ignore-sigterm" in behaviours:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("WARNING octavo.engine: the fake engine is up", file=sys.stderr, flush=True)
    print("a bare print", flush=True)
    if "die-at-start" in behaviours:
        print("ImportError: no such kernel", file=sys.stderr, flush=True)
        sys.exit(3)
    if "hang-at-start" in behaviours:
        time.sleep(600)
    Fake(arguments.bind, behaviours, arguments.secret_key).run()


if __name__ == "__main__":
    main()
