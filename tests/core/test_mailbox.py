"""The engine's end of a real socket: bounded rounds, any deadline, and frames of nobody's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from octavo import wire
from octavo.options import SamplingParams
from octavo_engine.address import BadAddress
from octavo_engine.mailbox import Mailbox
from octavo_engine.requests import Requests

ERRORS: list[str] = []


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[Mailbox]:
    ERRORS.clear()
    mailbox = Mailbox(f"ipc://{tmp_path}/s", lambda client, error: ERRORS.append(error), clock=lambda: 0.0)
    yield mailbox
    mailbox.close(0)


@pytest.fixture
def client(mailbox: Mailbox, tmp_path: Path) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"ipc://{tmp_path}/s")
    yield socket
    socket.close()
    context.term()


def received(mailbox: Mailbox, count: int) -> list[list[wire.ToEngine]]:
    """What each round brought, until there were so many messages."""
    rounds: list[list[wire.ToEngine]] = []
    while sum(map(len, rounds)) < count:
        rounds.append([message for _, message in mailbox.receive(20)])
    return rounds


def test_one_round_is_bounded_and_nothing_is_lost(mailbox: Mailbox, client: zmq.Socket[bytes]) -> None:
    """Else a client that sends faster than frames are read would stop the steps of all."""
    for token in range(2000):
        client.send(wire.encode([wire.StatsRequest(token)]))
    rounds = received(mailbox, 2000)
    assert [message.token for one in rounds for message in one if isinstance(message, wire.StatsRequest)] == [
        *range(2000)
    ]
    assert max(map(len, rounds)) <= 256


def test_a_long_step_is_followed_by_more_mail(tmp_path: Path) -> None:
    """Else a thousand requests that were cancelled would keep everybody else waiting for a step each few hundred."""
    now, sizes = 0.0, [0]
    frame = wire.encode([wire.StatsRequest(1)])
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        mailbox = Mailbox(f"ipc://{tmp_path}/s", clock=lambda: now)
        client.connect(f"ipc://{tmp_path}/s")
        while max(sizes) <= 256 and len(sizes) < 50:  # until so many lie there
            for _ in range(1000):
                client.send(frame)
            now += 8.0  # a step, of which mail may take an eighth
            sizes.append(0)
            for _ in mailbox.receive(20):
                sizes[-1] += 1
                now += 1 / 600
        mailbox.close(0)
    assert 256 < max(sizes) <= 601


def test_malformed_frames_are_dropped_and_do_not_fill_the_log(mailbox: Mailbox, client: zmq.Socket[bytes]) -> None:
    client.send_multipart([b"three", b"parts"])
    for _ in range(1000):
        client.send(b"\xc1")
    client.send(wire.encode([wire.StatsRequest(7)]))
    assert received(mailbox, 1)[-1] == [wire.StatsRequest(7)]
    assert mailbox.num_malformed == 1000
    assert len(ERRORS) == 10  # 1, 2, 4, ... 512


@pytest.mark.parametrize("seconds", [3e6, 1e16, 1e300])
def test_any_deadline_can_be_waited_for(mailbox: Mailbox, seconds: float) -> None:
    """SamplingParams.total_timeout may be as far away; the engine waits for it when it has nothing else to do."""
    mailbox.wake()
    assert list(mailbox.receive(seconds)) == []


def test_goodbye_is_said_for_a_client_that_can_not_say_it(mailbox: Mailbox, tmp_path: Path) -> None:
    """Killed, say. Those that stay are asked with a frame that holds nothing; nobody is asked while nobody leaves."""
    context = zmq.Context()
    stays, leaves = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    try:
        for socket in (stays, leaves):
            socket.linger = 0
            socket.connect(f"ipc://{tmp_path}/s")
            socket.send(wire.encode([wire.Hello(7)]))
        came: list[tuple[bytes, wire.ToEngine]] = []
        while len(came) < 2:
            came += mailbox.receive(20)
        assert not stays.poll(0)
        leaves.close()
        while len(came) < 3:  # woken by the end of the connection, however long nothing else happens
            came += mailbox.receive(20)
        left, message = came[-1]
        assert message == wire.Goodbye()
        assert left in [client for client, _ in came[:2]]
        assert stays.recv() == wire.encode([])
        assert wire.decode_to_client(wire.encode([])) == []
        assert not mailbox.send(left, [])
    finally:
        stays.close()
        context.term()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:0", "with keys alone, since nothing goes over tcp in the clear"),
        ("ipc://", "ipc:///path/to/socket"),
        ("/tmp/x", "ipc:///path/to/socket"),
        ("inproc://x", "ipc:///path/to/socket"),
        ("ipc://@everybody", "every user of the machine"),
        ("ipc:///tmp/" + "x" * 120, "at most 107 bytes"),
        ("ipc:///nonexistent/folder/s", "/nonexistent/folder is none"),
        ("ipc://{tmp}/file", "a path where nothing is"),
        ("ipc://{tmp}/s", "an engine listens there already"),
    ],
)
def test_places_that_are_refused_are_left_as_they_are(
    address: str, message: str, mailbox: Mailbox, client: zmq.Socket[bytes], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BadAddress, match=message):
        Mailbox(address.format(tmp=tmp_path))
    assert (tmp_path / "file").read_text() == "precious"
    client.send(wire.encode([wire.StatsRequest(7)]))
    assert received(mailbox, 1)[-1] == [wire.StatsRequest(7)]


def test_the_socket_of_one_that_was_killed_is_taken_over_and_none_is_left_behind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "s"))
    Mailbox(f"ipc://{tmp_path}/s").close(0)
    assert not list(tmp_path.iterdir())


def test_deadlines_of_what_has_ended_do_not_pile_up() -> None:
    requests = Requests()
    kept, _ = requests.begin(b"a", wire.Generate(0, SamplingParams()), 0.0)
    requests.watch(kept, 1.0, "total")
    for number in range(1, 5000):
        key, _ = requests.begin(b"a", wire.Generate(number, SamplingParams()), 0.0)
        requests.watch(key, 3600.0, "total")
        requests.end(key)
    assert len(requests._deadlines) <= 1024
    assert requests.next_deadline() == 1.0
    assert [key for key, _, _ in requests.expired(2.0)] == [kept]
