"""Clients that join an engine over tcp: keys, what answers instead of an engine, peers that vanish."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import zmq
from zmq.auth import create_certificates, load_certificate

import octavo
from octavo import AsyncClient, transport, wire
from octavo.cli import main
from tests.sdk.conftest import FAKE_ENGINE, fds, until

pytestmark = pytest.mark.anyio
SERVER, SECRET = (key.decode() for key in zmq.curve_keypair())


@contextmanager
def engine(bind: str = "tcp://127.0.0.1:*") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a fake engine that lets every client in who knows its key."""
    command = [sys.executable, str(FAKE_ENGINE), "--bind", bind, f"--secret-key={SECRET}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("at "))
        yield address, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with engine() as (address, _):
        yield address


async def test_requests_figures_and_joining_again(anyio_backend: Any, address: str) -> None:
    async with await AsyncClient.connect(address, server_public_key=SERVER) as client:
        assert (await client.generate("words 2")).text == "w0 w1 "
        stream = client.stream("forever")
        await anext(stream)
        await stream.aclose()
        await until(client, running=0)
        assert (await client.generate("x" * (8 << 20))).text == "x" * (8 << 20)
        await client.restart()
        assert (await client.generate("here")).text == "here"
        await client.health()
        assert await client.close() == "left"


async def test_keys_of_certificates(anyio_backend: Any, address: str, tmp_path: Path) -> None:
    public, secret = create_certificates(tmp_path, "client")
    os.chmod(secret, 0o600)
    (tmp_path / "engine.key").write_text(f'curve\n    public-key = "{SERVER}"\n')
    keys = {"server_public_key": tmp_path / "engine.key", "secret_key": Path(secret)}
    for more in ({}, {"public_key": Path(public)}, {"public_key": load_certificate(public)[0].decode()}):
        async with await AsyncClient.connect(address, **keys, **more) as client:
            assert (await client.generate("here")).text == "here"


async def test_an_engine_that_comes_later_and_one_that_follows_it(anyio_backend: Any) -> None:
    """A client whose engine died has no connection any more by which the next one there would be sent what is stale."""
    before = fds()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    async with anyio.create_task_group() as group:
        box: list[AsyncClient] = []

        async def connect() -> None:
            box.append(await AsyncClient.connect(address, server_public_key=SERVER))

        group.start_soon(connect)
        await anyio.wait_all_tasks_blocked()
        first = ExitStack()
        first.enter_context(engine(address))
    async with box[0] as client:
        stream = client.stream("forever")
        await anext(stream)
        first.close()
        with pytest.raises(octavo.EngineDead, match="closed the connection"):
            async for _ in stream:
                pass
        assert fds() == before
        with engine(address):
            with pytest.raises(octavo.EngineDead):
                await client.generate("here")
            await client.restart()
            assert (await client.generate("here")).text == "here"


async def test_another_server_s_key(anyio_backend: Any, address: str) -> None:
    other = zmq.curve_keypair()[0].decode()
    with pytest.raises(octavo.AccessDenied) as caught:
        await AsyncClient.connect(address, server_public_key=other)
    assert f"server_public_key={other!r} is not the key of what answers at {address}" in str(caught.value)


async def test_an_engine_without_keys(anyio_backend: Any) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as plain:
        port = plain.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(octavo.ProtocolMismatch, match="speaks ZeroMQ without CURVE keys"):
            await AsyncClient.connect(f"tcp://127.0.0.1:{port}", server_public_key=SERVER)


async def test_who_is_no_engine(anyio_backend: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as one:
                one.recv(64)
                one.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(octavo.ProtocolMismatch, match="does not speak ZeroMQ"):
            await AsyncClient.connect(f"tcp://127.0.0.1:{listening.getsockname()[1]}", server_public_key=SERVER)
        thread.join()


async def test_who_breaks_off_each_handshake(anyio_backend: Any) -> None:
    """As an engine does with a wrong key; one that does so once or twice may be ending."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(transport._BROKEN_OFF):
                listening.accept()[0].close()
                seen.append(1)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(octavo.AccessDenied, match="breaks off each handshake"):
            await AsyncClient.connect(f"tcp://127.0.0.1:{listening.getsockname()[1]}", server_public_key=SERVER)
        thread.join()
    assert len(seen) == transport._BROKEN_OFF


async def test_a_host_that_is_not_known(anyio_backend: Any) -> None:
    with pytest.raises(octavo.EngineStartError, match=r"the host of tcp://nobody\.invalid:5 is not known"):
        await AsyncClient.connect("tcp://nobody.invalid:5", server_public_key=SERVER, ready_timeout=0.5)


@pytest.mark.parametrize("host", ["[::1]", "::1"])
async def test_ipv6_also_where_only_looking_shows_it(anyio_backend: Any, host: str) -> None:
    """A host without an IPv4 address, as a name can be."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.ipv6, router.linger = True, 0
        router.curve_server, router.curve_secretkey = True, SECRET.encode()
        port = router.bind_to_random_port("tcp://[::1]")

        def answer() -> None:
            peer, _ = router.recv_multipart()
            ready = wire.Ready(wire.PROTOCOL_VERSION, 1, "0", octavo.EngineOptions(), "Six", True, True, 1, 1, ())
            router.send_multipart((peer, wire.encode([ready])))

        thread = threading.Thread(target=answer)
        thread.start()
        async with await AsyncClient.connect(f"tcp://{host}:{port}", server_public_key=SERVER) as client:
            assert client.ready.architecture == "Six"
        thread.join()


async def test_an_engine_that_vanishes_is_dead_though_nothing_closed_the_connection(anyio_backend: Any) -> None:
    """Its machine, or the network between: nothing is told, and heartbeats are not answered."""
    with engine() as (address, process):
        async with await AsyncClient.connect(address, server_public_key=SERVER, peer_timeout=0.4) as client:
            assert (await client.generate("words 1")).text == "w0 "
            stream = client.stream("forever")
            await anext(stream)
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(octavo.EngineDead, match=r"silent for 0\.4 s \(peer_timeout\)"):
                async for _ in stream:
                    pass
            with pytest.raises(octavo.EngineDead):
                await client.generate("here")
            assert await client.close() == "gone"


async def test_a_frame_that_no_engine_would_take(
    anyio_backend: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await AsyncClient.connect(address, server_public_key=SERVER) as client:
        monkeypatch.setattr(wire, "MAX_TCP_FRAME", 1 << 16)
        with pytest.raises(octavo.InvalidRequest, match=r"over tcp at most 65536"):
            await client.generate("x" * (1 << 16))
        assert client._session.router.num_requests == 0
        assert (await client.generate("here")).text == "here"


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1", "tcp://h:0", "tcp://h:65536", "tcp://h:x", "tcp://:5", "tcp://*:5"]
)
async def test_addresses_that_are_refused(anyio_backend: Any, address: str) -> None:
    with pytest.raises(octavo.InvalidOption) as caught:
        await AsyncClient.connect(address, server_public_key=SERVER)
    assert caught.value.field == "address"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "server_public_key=None: the engine's CURVE key"),
        ({"server_public_key": "short"}, "server_public_key='short': a key of 40 characters of Z85"),
        ({"server_public_key": "#" * 40}, "of Z85"),
        ({"server_public_key": "\u00e9" * 40}, "of Z85"),
        ({"server_public_key": 5}, "server_public_key=5"),
        (
            {"server_public_key": Path("{the folder}/nothing")},
            r"server_public_key='{f}/nothing': a certificate, .*nothing",
        ),
        ({"server_public_key": Path("{the folder}/empty")}, r"a certificate, .*No public key"),
        ({"server_public_key": Path("{the folder}/half")}, r"a certificate, "),
        ({"server_public_key": SERVER, "public_key": SERVER}, "secret_key=None: the one that belongs to public_key"),
        ({"server_public_key": SERVER, "public_key": SERVER, "secret_key": "{another}"}, "public_key=.*: the one that"),
        ({"server_public_key": SERVER, "secret_key": Path("{the folder}/client.key")}, "this one has no secret key"),
        ({"server_public_key": SERVER, "secret_key": Path("{the folder}/open")}, "of mode 0640: chmod 600"),
        ({"server_public_key": SERVER, "secret_key": "{another}!"}, r"secret_key='\.\.\.': a key of 40"),
        ({"server_public_key": SERVER, "peer_timeout": 0}, "peer_timeout=0"),
        ({"server_public_key": SERVER, "peer_timeout": 1e9}, r"a number in \(0.0, 86400.0\]"),
    ],
)
async def test_keys_that_are_refused(anyio_backend: Any, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    other = zmq.curve_keypair()[1].decode()

    def filled(key: str | Path) -> str | Path:
        return type(key)(str(key).replace("{the folder}", str(tmp_path)).replace("{another}", other))

    _, secret = create_certificates(tmp_path, "client")
    Path(secret).rename(tmp_path / "open").chmod(0o640)
    (tmp_path / "empty").write_text("")
    (tmp_path / "half").write_text("public-key")
    given = {name: filled(key) if isinstance(key, (str, Path)) else key for name, key in keys.items()}
    with pytest.raises(octavo.InvalidOption, match=message.replace("{f}", str(tmp_path))) as caught:
        await AsyncClient.connect("tcp://127.0.0.1:5", **given)
    assert other not in str(caught.value)


# ---- octavo keys -------------------------------------------------------------------------------------------------


def test_keys_are_made_for_their_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert main(["keys", str(folder)]) == 0
    assert main(["keys", str(folder), "laptop"]) == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    names = ["client", "engine", "laptop"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name + end for name in names for end in (".key", ".key_secret")
    )
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    told = capsys.readouterr().out
    for name in names:
        public, secret = load_certificate(folder / f"{name}.key_secret")
        assert load_certificate(folder / f"{name}.key") == (public, None)
        assert secret is not None
        assert zmq.curve_public(secret) == public
        assert f"{folder}/{name}.key_secret: public key {public.decode()}\n" in told
        assert secret.decode() not in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{f}", "there"], "{f}/there.key is, and stays"),
        (["{f}", "../there"], "name='../there': letters"),
        (["{f}/file", "x"], "one that can be written to"),
    ],
)
def test_keys_that_are_not_made(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("there.key", "file"):
        (tmp_path / name).write_text("precious")
    assert main(["keys", *(argument.format(f=tmp_path) for argument in arguments)]) == 1
    assert message.format(f=tmp_path) in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"there.key": "precious", "file": "precious"}


# ---- commands that join ------------------------------------------------------------------------------------------


def test_a_chat_with_an_engine_that_runs_already(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = create_certificates(tmp_path, "me")[1]
    os.chmod(secret, 0o600)
    (tmp_path / "engine.key").write_text(f'curve\n    public-key = "{SERVER}"\n')
    for key in (SERVER, str(tmp_path / "engine.key")):
        arguments = ["--connect", address, "--server-public-key", key, "--secret-key", secret]
        assert main(["chat", *arguments, "--prompt", "hello"]) == 0
        told = capsys.readouterr()
        assert told.out == "user:hello\n"
        assert f"joining {address}" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model='': a local folder, a GGUF file, or a hub id; or --connect ADDRESS"),
        (["m", "--connect", "ipc:///x"], "model='m': of an engine that is started"),
        (["--connect", "ipc:///x", "--quantization", "int4"], "--quantization='int4': of an engine that is started"),
        (["m", "--server-public-key", SERVER], "--server-public-key='"),
        (["--connect", "tcp://h:5"], "server_public_key=None"),
        (["--connect", "tcp://h:5", "--server-public-key", SERVER, "--secret-key", "/nothing"], "'/nothing'"),
    ],
)
def test_joining_that_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--prompt", "hello", *arguments]) == 1
    assert message in capsys.readouterr().err
