"""What callers get wrong: refused at once, by a type of octavo's, and never sent where nobody would answer."""

from __future__ import annotations

import copy
import enum
import math
import pickle
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import zmq

import octavo
from octavo import AsyncClient, BeamParams, EngineOptions, SamplingParams, wire
from octavo.process import engine_command
from octavo.testing import ScriptedEngine

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("total_timeout", math.inf, "a number in (0.0, inf)"),
        ("max_tokens", 0, "a whole number >= 1"),
        ("max_tokens", 1 << 70, "a whole number in 1..9223372036854775807"),
        ("top_k", 1 << 70, "a whole number in 0..9223372036854775807"),
        ("n", 2000, "a whole number in 1..1024"),
    ],
)
def test_what_is_allowed_is_said_as_it_is(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(octavo.InvalidOption) as caught:
        SamplingParams(**{name: value})
    assert (caught.value.field, caught.value.allowed) == (name, allowed)


@pytest.mark.parametrize(
    ("model", "options", "field"),
    [(5, None, "model"), ([], None, "model"), ("m", {"dtype": "auto"}, "options"), ("m", SamplingParams(), "options")],
)
def test_what_no_client_can_be_made_of(model: Any, options: Any, field: str) -> None:
    with pytest.raises(octavo.InvalidOption) as caught:
        AsyncClient(model, options)
    assert caught.value.field == field


async def test_a_model_whose_name_is_no_text(anyio_backend: Any) -> None:
    with pytest.raises(octavo.InvalidOption, match="surrogates not allowed") as caught:
        await AsyncClient("\ud800").open()
    assert caught.value.field == "model"


def test_a_command_line_of_ascii_in_every_locale() -> None:
    options = EngineOptions(model="modèle/😀.gguf", speculation=octavo.Draft("ébauche"), seed=1 << 62)
    encoded = engine_command(options)[-1]
    assert encoded.isascii()
    assert msgspec.json.decode(encoded, type=EngineOptions) == options


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_is_not_copied(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"share=True.*AsyncClient\.connect"):
        copied(AsyncClient("m"))


async def test_an_adapter_s_folder_of_bytes_arrives(anyio_backend: Any) -> None:
    async with ScriptedEngine().client() as client:
        await client.load_lora("a", b"/folder")  # type: ignore[arg-type]
        assert [lora.path for lora in await client.loras()] == ["/folder"]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c: c.generate("x", {}), "params: SamplingParams or BeamParams are needed, not dict"),
        (lambda c: c.generate("x", 0), "params: SamplingParams or BeamParams are needed, not int"),
        (lambda c: c.generate(["a", "b"]), "one prompt a call"),
        (lambda c: c.generate("x", SamplingParams(logits_processors={"a": 1 << 80})), "more than 64 bits"),
        (
            lambda c: c.generate([{"role": "user", "content": "x", "tool_calls": [object()]}]),
            "messages[0]: JSON values are needed",
        ),
        (lambda c: c.chat([*USER, {"content": "x"}]), 'messages[1]: "role" must be a string, not NoneType'),
        (
            lambda c: c.chat([{"role": "user", "content": [{"type": "text", "text": "x"}]}]),
            'messages[0]: "content" must be a string, not list; join the text of its parts',
        ),
        (lambda c: c.chat([*USER, "x"]), 'messages[1]: a mapping with "role" and "content" is needed, not str'),
        (lambda c: c.embed("x", params={"priority": 1}), "params: SamplingParams are needed, not dict"),
        (lambda c: c.embed("x", params=BeamParams()), "params: SamplingParams are needed, not BeamParams"),
        (lambda c: c.score(5, ["a"]), "prompt: text, token ids or chat messages are needed, not int"),
        (lambda c: c.score([5], [None]), "continuations: texts or token ids are needed, not NoneType"),
        (lambda c: c.tokenize("x", special="yes"), "special='yes': True or False"),
        (lambda c: c.detokenize([1], skip_special_tokens=None), "skip_special_tokens=None: True or False"),
        (lambda c: c.detokenize(None), "token_ids: token ids are needed, not NoneType"),
        (lambda c: c.token_texts("5"), "token_ids: token ids are needed, not str"),
        (lambda c: c.apply_chat_template(USER, template=5), "template: a mapping"),
        (lambda c: c.apply_chat_template(USER, add_generation_prompt="x"), "add_generation_prompt='x'"),
        (lambda c: c.abort("x"), "what AsyncClient.stream returns is needed, not 'x'"),
    ],
)
async def test_calls_that_are_refused(
    client: AsyncClient, call: Callable[[AsyncClient], Awaitable[Any]], text: str
) -> None:
    with anyio.fail_after(10), pytest.raises((octavo.InvalidRequest, octavo.InvalidOption)) as caught:
        await call(client)
    assert text in str(caught.value)
    assert (await client.stats())["requests"] == 0


class Text(str):
    def __str__(self) -> str:
        return "not this"


class Whole(int):
    pass


class Float(float):  # as numpy.float64 is
    pass


class Role(str, enum.Enum):  # noqa: UP042 - people's code has these
    USER = "user"


async def test_kinds_of_str_int_and_float_are_what_they_hold(client: AsyncClient) -> None:
    assert (await client.generate(Text("here"))).text == "here"
    params = SamplingParams(
        temperature=Float(0.5), max_tokens=Whole(3), stop=[Text("q")], logit_bias={Whole(5): Float(1)}
    )
    assert (await client.generate("here", params)).text == "here"
    sent = wire.decode_to_engine(wire.encode([wire.Generate(1, params, text=Text("a"))]))[0]
    assert isinstance(sent, wire.Generate)
    assert (sent.params, sent.text) == (params, "a")
    named = [{"role": Role.USER, "content": Text("x"), "name": Text("n")}]
    assert (await client.chat(named)).text == "user:x"
    assert '"model":"m"' in engine_command(EngineOptions(model=Text("m")))[-1]


@pytest.mark.parametrize("address", [None, 5, "tcp://127.0.0.1", f"ipc:///tmp/{'y' * 200}", "ipc:///tmp/\ud800"])
async def test_addresses_that_can_not_be(anyio_backend: Any, address: Any) -> None:
    with pytest.raises(octavo.InvalidOption) as caught:
        await AsyncClient.connect(address, server_public_key=zmq.curve_keypair()[0].decode())
    assert caught.value.field == "address"


async def test_nobody_is_told_with_the_address(anyio_backend: Any, tmp_path: Path) -> None:
    with pytest.raises(octavo.EngineStartError, match=rf"none answers at ipc://{tmp_path}/nobody\.sock"):
        await AsyncClient.connect(f"ipc://{tmp_path}/nobody.sock", ready_timeout=0.1)


async def test_a_socket_that_breaks_off_the_handshake(anyio_backend: Any, tmp_path: Path) -> None:
    """A PULL is no peer of ours: ZeroMQ then refuses to take what we send."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(f"ipc://{tmp_path}/pull.sock")
        with pytest.raises(octavo.EngineStartError, match=r"none answers at .*pull\.sock"):
            await AsyncClient.connect(f"ipc://{tmp_path}/pull.sock", ready_timeout=1.2)


async def test_somebody_else_s_socket(anyio_backend: Any, tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.bind(f"ipc://{tmp_path}/other.sock")

        def answer() -> None:
            socket.recv()
            socket.send(b"hello")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(octavo.ProtocolMismatch, match=r"is it an engine of octavo, at ipc://.*other\.sock\?"):
            await AsyncClient.connect(f"ipc://{tmp_path}/other.sock", ready_timeout=10)
        thread.join()
