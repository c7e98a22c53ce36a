"""Who may join over tcp: keys in files and variables, and the mailbox's door, at real sockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth import create_certificates, load_certificate

from octavo import wire
from octavo_engine import keys
from octavo_engine import mailbox as mailbox_module
from octavo_engine.address import BadAddress
from octavo_engine.config import key_variables
from octavo_engine.keys import BadKeys, curve_of
from octavo_engine.mailbox import Curve, Mailbox

Join = Callable[..., "zmq.Socket[bytes]"]


def pair(folder: Path, name: str) -> tuple[str, str]:
    """The public and the secret key of a new pair, whose certificates lie in folder as the library writes them."""
    folder.mkdir(exist_ok=True)
    path = Path(create_certificates(folder, name)[1])
    path.chmod(0o600)
    public, secret = load_certificate(path)
    assert secret is not None
    return public.decode(), secret.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pair(tmp_path, "engine")
    return tmp_path


def opened(curve: Curve | None, address: str = "tcp://127.0.0.1:0") -> Mailbox:
    return Mailbox(address, curve=curve)


@pytest.fixture
def join(folder: Path) -> Iterator[Join]:
    """A DEALER that says Hello, with the events of its handshake to be polled for in `monitor`."""
    context = zmq.Context()
    held: list[zmq.Socket[bytes]] = []

    def connect(mailbox: Mailbox, client: tuple[str, str] | None) -> zmq.Socket[bytes]:
        dealer = context.socket(zmq.DEALER)
        held.append(dealer)
        dealer.linger, dealer.ipv6 = 0, True
        if client is not None:
            dealer.curve_serverkey = load_certificate(folder / "engine.key")[0]
            dealer.curve_publickey, dealer.curve_secretkey = (key.encode() for key in client)
        dealer.connect(mailbox.address)
        dealer.send(wire.encode([wire.Hello(7)]))
        return dealer

    yield connect
    context.destroy(linger=0)


def heard(mailbox: Mailbox) -> bytes:
    """Who said Hello, which must be heard."""
    for _ in range(20):
        for client, message in mailbox.receive(1):
            assert message == wire.Hello(7)
            return client
    raise AssertionError("no Hello within 20 s")


def refusal(dealer: zmq.Socket[bytes]) -> int:
    """The event that ends its handshake."""
    monitor = dealer.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_SUCCEEDED
    )
    assert monitor.poll(10_000)
    return int.from_bytes(monitor.recv_multipart()[0][:2], "little")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "*"])
def test_a_listed_client_at_each_kind_of_address(folder: Path, join: Join, host: str) -> None:
    client = pair(folder, "client")
    mailbox = opened(curve_of(str(folder), None), f"tcp://{host}:0")
    try:
        assert int(mailbox.address.rpartition(":")[2]) > 0
        mailbox.address = mailbox.address.replace("0.0.0.0", "127.0.0.1")
        dealer = join(mailbox, client)
        assert mailbox.send(heard(mailbox), [wire.Goodbye()])
        assert dealer.recv() == wire.encode([wire.Goodbye()])
    finally:
        mailbox.close(0)


def test_who_is_not_listed_is_told_so_while_the_engine_does_something_else(
    folder: Path, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody receives here: a model may be loading, or a step running."""
    mailbox = opened(curve_of(str(folder), None))
    try:
        stranger = pair(folder / "elsewhere", "stranger")
        with caplog.at_level(logging.WARNING, "octavo.engine"):
            assert refusal(join(mailbox, stranger)) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        assert f"127.0.0.1 was not let in: its public key {stranger[0]} is none of those of {folder}" in caplog.text
        # Whose certificate is put there is let in, and whose is taken away is not.
        (folder / "stranger.key").write_bytes((folder / "elsewhere" / "stranger.key").read_bytes())
        join(mailbox, stranger)
        heard(mailbox)
        (folder / "stranger.key").unlink()
        assert refusal(join(mailbox, stranger)) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        # Nor is the engine's own key somebody's, though its certificate lies there, too.
        own = load_certificate(folder / "engine.key_secret")
        assert own[1] is not None
        assert refusal(join(mailbox, (own[0].decode(), own[1].decode()))) == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    finally:
        mailbox.close(0)


def test_a_client_without_keys_learns_nothing(folder: Path) -> None:
    """What is there before a client is let in: ZMTP's greeting, with the mechanism, and then the end."""
    pair(folder, "client")
    mailbox = opened(curve_of(str(folder), None))
    try:
        with socket.create_connection(("127.0.0.1", int(mailbox.address.rpartition(":")[2])), 10) as plain:
            came = plain.recv(10)
            plain.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
            with suppress(ConnectionResetError):
                while part := plain.recv(4096):
                    came += part
        greeting = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\x01" + bytes(31)
        assert len(came) >= 10
        assert greeting.startswith(came)
        assert list(mailbox.receive(0.01)) == []
    finally:
        mailbox.close(0)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n",
        bytes(range(256)) * 40,
        GREETING + b"\x04\x1a\x05READY" + bytes(20),
        GREETING + b"\x06" + (1 << 62).to_bytes(8, "big") + b"\x05HELLO" + bytes(1000),
        GREETING + b"\x06" + (wire.MAX_TCP_FRAME + 1).to_bytes(8, "big") + b"\x05HELLO" + bytes(1000),
    ],
)
def test_who_says_anything_else_is_shown_out(folder: Path, join: Join, said: bytes) -> None:
    client = pair(folder, "client")
    mailbox = opened(curve_of(str(folder), None))
    try:
        port = int(mailbox.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as plain, suppress(ConnectionError):
            plain.sendall(said)
            while plain.recv(4096):  # the end, or TimeoutError
                pass
        join(mailbox, client)
        heard(mailbox)
    finally:
        mailbox.close(0)


def test_without_its_door_the_mailbox_lets_nobody_in(folder: Path, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ by itself would let everybody in."""
    client = pair(folder, "client")
    monkeypatch.setattr(mailbox_module._Door, "start", lambda door: door._socket.close())
    mailbox = opened(curve_of(str(folder), None))
    try:
        dealer = join(mailbox, client)
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        assert not monitor.poll(300)
        assert list(mailbox.receive(0.01)) == []
    finally:
        mailbox.close(0)


def test_a_list_that_breaks_is_left_as_it_was(folder: Path, join: Join, caplog: pytest.LogCaptureFixture) -> None:
    client = pair(folder, "client")
    mailbox = opened(curve_of(str(folder), None))
    try:
        (folder / "half.key").write_text("public-key")
        with caplog.at_level(logging.WARNING, "octavo.engine"):
            join(mailbox, client)
            heard(mailbox)
        assert "the list of clients is left as it was" in caplog.text
    finally:
        mailbox.close(0)


def test_any_client(folder: Path, join: Join, tmp_path: Path) -> None:
    mailbox = opened(curve_of(str(folder / "engine.key_secret"), None, allow_any_client=True))
    try:
        join(mailbox, pair(tmp_path / "elsewhere", "anybody"))
        heard(mailbox)
    finally:
        mailbox.close(0)


def test_a_frame_that_is_too_large_ends_its_client_s_connection(
    folder: Path, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_TCP_FRAME", 1 << 20)
    client = pair(folder, "client")
    mailbox = opened(curve_of(str(folder), None))
    try:
        dealer = join(mailbox, client)
        known = heard(mailbox)
        dealer.send(wire.encode([wire.Tokenize(1, "x" * (1 << 19))]))
        while not (came := list(mailbox.receive(10))):
            pass
        assert came == [(known, wire.Tokenize(1, "x" * (1 << 19)))]
        dealer.send(b"x" * (1 << 21))
        while not (came := list(mailbox.receive(10))):
            pass
        assert came == [(known, wire.Goodbye())]
    finally:
        mailbox.close(0)


def test_a_file_of_keys_and_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair(folder / "a", "one"), pair(folder / "a", "two")
    listed = folder / "clients"
    listed.write_text(f"# who may join\n\n{one[0]} the laptop\n{'#' + two[0][1:]}\n")
    curve = curve_of(str(folder / "engine.key_secret"), str(listed), peer_timeout=3.0)
    assert curve is not None
    assert curve.peer_timeout == 3.0
    assert [curve.lets_in(key, "x") for key in (one[0], "#" + two[0][1:], two[0])] == [True, True, False]
    monkeypatch.setenv("OCTAVO_SECRET_KEY", two[1])
    monkeypatch.setenv("OCTAVO_CLIENT_KEYS", f"{one[0]} {two[0]}")
    curve = curve_of(None, None, variables=key_variables())
    assert curve is not None
    assert (curve.secret_key, curve.lets_in(two[0], "x")) == (two[1], True)
    assert curve_of(None, None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keys": "{f}/open.key_secret"}, r"{f}/open\.key_secret has mode 0644, .*chmod 600"),
        ({"keys": "{f}/engine.key"}, r"{f}/engine\.key has no secret key; .*NAME\.key_secret"),
        ({"keys": "{f}/nothing"}, "No such file"),
        ({"keys": "{f}/a"}, r"a folder with engine\.key_secret: .*No such file"),
        ({"keys": "{f}/wrong"}, "a secret key of 40 characters of Z85"),
        ({"keys": "{f}/engine.key_secret"}, "says who may join"),
        ({"keys": "{f}", "clients": "{f}/nothing"}, "No such file"),
        ({"keys": "{f}", "clients": "{f}/list"}, "{f}/list has 'nonsense'"),
        ({"keys": "{f}", "clients": "{f}/a", "allow_any_client": True}, "not with --allow-any-client"),
        ({"keys": None, "clients": "{f}/a"}, "go with --keys"),
        ({"keys": "{f}", "peer_timeout": 0.0}, "--peer-timeout=0"),
        ({"keys": "{f}", "peer_timeout": float("nan")}, "--peer-timeout=nan"),
        ({"keys": "{f}", "peer_timeout": 1e9}, "at most 86400"),
        ({"keys": None, "variables": ("short", "")}, "OCTAVO_SECRET_KEY: a secret key"),
        ({"keys": "{f}", "variables": ("", "x y")}, "OCTAVO_CLIENT_KEYS: public keys .*'[xy]'"),
    ],
)
def test_keys_that_are_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    (folder / "a").mkdir()
    secret = (folder / "engine.key_secret").read_text()
    for name, mode, text in (
        ("open.key_secret", 0o644, secret),
        ("wrong", 0o600, secret.replace("secret-key = ", "secret-key = #####")),
        ("list", 0o600, "nonsense\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    named = {name: value.format(f=folder) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(BadKeys, match=message.format(f=folder)) as caught:
        curve_of(**{"clients": None, **named})
    assert load_certificate(folder / "engine.key_secret")[1].decode() not in str(caught.value)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://:5", "tcp://::1:5", "tcp://a:b", "tcp://", "tcp://[x:5"],
)
def test_addresses_that_are_none(folder: Path, address: str) -> None:
    with pytest.raises(BadAddress, match=r"tcp://host:port"):
        opened(curve_of(str(folder), None), address)


def test_ports_that_can_not_be_had(folder: Path) -> None:
    first = opened(curve_of(str(folder), None))
    try:
        with pytest.raises(BadAddress, match="Address already in use"):
            opened(curve_of(str(folder), None), first.address)
    finally:
        first.close(0)
    with pytest.raises(BadAddress, match="one that can be bound"):
        opened(curve_of(str(folder), None), "tcp://192.0.2.1:0")  # nobody's, RFC 5737
    with pytest.raises(BadAddress, match="with keys alone"):
        opened(None)


def test_refusals_do_not_fill_the_log(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    clock = [100.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: clock[0])
    curve = curve_of(str(folder), None)
    assert curve is not None
    with caplog.at_level(logging.WARNING, "octavo.engine"):
        for _ in range(1000):
            curve.turned_away("it speaks without CURVE")
        clock[0] += 1
        assert not curve.lets_in("x" * 40, "10.0.0.7")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "somebody was not let in",
        "a client on 10.0.0.7 was not let in",
    ]
    assert "(and 999 more since the last such line)" in caplog.text
