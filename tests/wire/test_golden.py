"""The bytes of every message. A change here is a new PROTOCOL_VERSION."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo import wire
from octavo.beams import BeamParams
from octavo.options import Choice, EngineOptions, Grammar, JsonObject, JsonSchema, Regex, SamplingParams

TO_ENGINE: list[tuple[Any, str]] = [
    (wire.Hello(1), "91920101"),
    (
        wire.Generate(7, SamplingParams(max_tokens=5, temperature=0.0), text="héllo"),
        ("919a0207de0002aa6d61785f746f6b656e7305ab74656d7065726174757265cb0000000000000000a668c3a96c6c6fc0c0c0c0c0c0"),
    ),
    (
        wire.Generate(8, SamplingParams(n=2, stop="x", logit_bias={3: -1.5}, seed=-1), token_ids=[0, 127, 70000]),
        (
            "919a0208de0004a16e02a473656564ffa473746f7091a178aa6c6f6769745f626961738103cbbff80000000000"
            "00c093007fce00011170c0c0c0c0c0"
        ),
    ),
    (
        wire.Generate(9, SamplingParams(), messages=[wire.Message("user", "hi")], template='{"a":1}'),
        "919a0209de0000c0c09193a475736572a26869c0a77b2261223a317dc0c0c0",
    ),
    (
        wire.Generate(10, SamplingParams(structured=JsonSchema({"type": "object"}, strict=False)), text="x"),
        (
            "919a020ade0001aa7374727563747572656483a474797065ab6a736f6e5f736368656d61a6736368656d61b17b"
            "2274797065223a226f626a656374227da6737472696374c2a178c0c0c0c0c0c0"
        ),
    ),
    (
        wire.Generate(10, SamplingParams(structured=JsonObject()), text="x"),
        "919a020ade0001aa7374727563747572656481a474797065ab6a736f6e5f6f626a656374a178c0c0c0c0c0c0",
    ),
    (
        wire.Generate(10, SamplingParams(structured=Regex("a+")), text="x"),
        "919a020ade0001aa7374727563747572656482a474797065a57265676578a77061747465726ea2612ba178c0c0c0c0c0c0",
    ),
    (
        wire.Generate(10, SamplingParams(structured=Choice(["a", "b"])), text="x"),
        ("919a020ade0001aa7374727563747572656482a474797065a663686f696365a763686f6963657392a161a162a178c0c0c0c0c0c0"),
    ),
    (
        wire.Generate(10, SamplingParams(structured=Grammar("root ::= 'a'")), text="x"),
        (
            "919a020ade0001aa7374727563747572656482a474797065a76772616d6d6172a474657874ac726f6f74203a3a"
            "3d20276127a178c0c0c0c0c0c0"
        ),
    ),
    (
        wire.Generate(9, BeamParams().sampling(), text="x", beam=BeamParams(beam_width=2, early_stopping="never")),
        (
            "919a0209de0001ab74656d7065726174757265cb0000000000000000a178c0c0c0c0c082aa6265616d5f776964"
            "746802ae6561726c795f73746f7070696e67a56e65766572"
        ),
    ),
    (wire.Abort([7, 300]), "9192039207cd012c"),
    (wire.StatsRequest(12), "9192040c"),
    (wire.Drain(), "919205c3"),
    (wire.Drain(abort=False), "919205c2"),
    (wire.Goodbye(), "919106"),
    (wire.Tokenize(5, "hé"), "91970705a368c3a9c3c0c0c2"),
    (
        wire.Tokenize(6, "", special=False, messages=[wire.Message("user", None, '{"a":1}')]),
        "91970706a0c29193a475736572c0a77b2261223a317dc0c2",
    ),
    (
        wire.Tokenize(6, "", messages=[wire.Message("user", "hi")], template="{}", render=True),
        "91970706a0c39193a475736572a26869c0a27b7dc3",
    ),
    (wire.LoadLora(3, "a", "/x"), "91940c03a161a22f78"),
    (wire.UnloadLora(4, "a"), "91930d04a161"),
    (wire.ListLoras(5), "91920e05"),
    (
        wire.Generate(10, SamplingParams(), token_ids=[1], task=wire.Embed("last", False, 64), lora="a"),
        "919a020ade0000c09101c0c09401a46c617374c240a161c0",
    ),
    (
        wire.Generate(11, SamplingParams(prompt_logprobs=0), token_ids=[1], task=wire.Score(0)),
        "919a020bde0001af70726f6d70745f6c6f6770726f627300c09101c0c0920200c0c0",
    ),
    (wire.Detokenize(7, [1, 300]), "919508079201cd012cc3c2"),
]

TO_CLIENT: list[tuple[Any, str]] = [
    (wire.Progress("load", 1, 98_000_000, "weights"), "919514a46c6f616401ce05d75c80a777656967687473"),
    (
        wire.Ready(1, 42, "0.1.0", EngineOptions(model="m", max_model_len=2048), "Llama", True, False, 49152, 64, (2,)),
        (
            "919d15012aa5302e312e30de0002a56d6f64656ca16dad6d61785f6d6f64656c5f6c656ecd0800a54c6c616d61c3c2cdc000409102c000"
        ),
    ),
    (
        wire.Deltas(
            [
                wire.Delta(7, 0, "a", (1,)),
                wire.Delta(8, 1, "é", (2, 3), (wire.TokenLogprob(2, -0.5, 1, ((2, -0.5), (4, -1.25))),), "stop", "\n"),
                wire.Delta(9, 0, "", (5,), None, "stop", 5),
            ]
        ),
        (
            "91921693970700a1619101c0c0c0970801a2c3a9920203919402cbbfe000000000000001929202cbbfe0000000"
            "0000009204cbbff4000000000000a473746f70a10a970900a09105c0a473746f7005"
        ),
    ),
    (
        wire.Finished(
            7,
            (wire.Choice(0, "length", None, -2.5, -0.5),),
            (1, 2),
            wire.Usage(2, 1, 5, 0.25, 0.5, 1.0),
            (None, wire.TokenLogprob(2, -1.0, 3)),
        ),
        (
            "91971707919500a66c656e677468c0cbc004000000000000cbbfe000000000000092010296020105cb3fd00000"
            "00000000cb3fe0000000000000cb3ff000000000000092c09402cbbff00000000000000390c0"
        ),
    ),
    (
        wire.Finished(8, (wire.Choice(0, "stop", None, None),), (1,), wire.Usage(1), None, b"\0\0\x80\x3f"),
        "91971708919500a473746f70c0c0c0910196010000cb0000000000000000c0cb0000000000000000c0c4040000803f",
    ),
    (
        wire.Failed(7, "timeout", "late", "total", (1,), wire.Usage()),
        ("91971807a774696d656f7574a46c617465a5746f74616c910196000000cb0000000000000000c0cb0000000000000000"),
    ),
    (wire.Failed(8, "overloaded", "full"), "91971808aa6f7665726c6f61646564a466756c6cc090c0"),
    (
        wire.Stats(12, {"num_requests_running": 3.0}),
        "9193190c81b46e756d5f72657175657374735f72756e6e696e67cb4008000000000000",
    ),
    (wire.Tokens(5, (1, 49151)), "91941b059201cdbfffc0"),
    (wire.Tokens(6, (), "none"), "91941b0690a46e6f6e65"),
    (wire.Texts(7, ("a", "\ufffd")), "91941c0792a161a3efbfbdc0"),
    (wire.Loras(5, (wire.LoraInfo("a", "/x", 16, ("q_proj",)),)), "919420059194a161a22f781091a6715f70726f6ac0"),
    (wire.Loras(5, (), "none"), "9194200590a46e6f6e65"),
    (wire.Dying("internal", "IndexError"), "91931aa8696e7465726e616caa496e6465784572726f72"),
]


@pytest.mark.parametrize(("message", "golden"), TO_ENGINE, ids=lambda value: type(value).__name__)
def test_to_engine(message: Any, golden: str) -> None:
    assert wire.encode([message]).hex() == golden
    assert wire.decode_to_engine(bytes.fromhex(golden)) == [message]


@pytest.mark.parametrize(("message", "golden"), TO_CLIENT, ids=lambda value: type(value).__name__)
def test_to_client(message: Any, golden: str) -> None:
    assert wire.encode([message]).hex() == golden
    assert wire.decode_to_client(bytes.fromhex(golden)) == [message]


def test_every_message_is_pinned() -> None:
    def tagged(union: Any) -> set[type]:
        return set(union.__args__)

    assert {type(message) for message, _ in TO_ENGINE} == tagged(wire.ToEngine)
    assert {type(message) for message, _ in TO_CLIENT} == tagged(wire.ToClient)


def test_several_messages_share_a_frame() -> None:
    messages = [message for message, _ in TO_CLIENT]
    assert wire.decode_to_client(wire.encode(messages)) == messages


@pytest.mark.parametrize("count", [1, 15, 16, 70_000])
def test_deltas_put_together_of_parts(count: int) -> None:
    choices = [(0, 0), (127, 1), (128, 0), (1 << 40, 300)]
    texts = [("", 0), (" the", 278), ("é" * 20, 70_000), ("x" * 300, 1 << 31)]
    deltas = [wire.Delta(*choices[i % 4], text, (token,)) for i in range(count) for text, token in [texts[i // 4 % 4]]]
    parts = [wire.delta_head(d.request_id, d.index) + wire.delta_tail(d.text, d.token_ids[0]) for d in deltas]
    told = msgspec.Raw(wire.deltas_head(count) + b"".join(parts))
    assert wire.encode([told, wire.Stats(1, {})]) == wire.encode([wire.Deltas(deltas), wire.Stats(1, {})])


def test_the_two_directions_do_not_mix() -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_to_client(wire.encode([wire.Hello(1)]))
    with pytest.raises(msgspec.ValidationError):
        wire.decode_to_engine(wire.encode([wire.Progress("load", 0, 0)]))


def test_wrong_options_do_not_cross_the_wire() -> None:
    frame = msgspec.msgpack.encode([[2, 1, {"temperature": -1.0}, "text"]])
    with pytest.raises(msgspec.ValidationError, match="temperature"):
        wire.decode_to_engine(frame)


def test_all_is_sorted() -> None:
    assert wire.__all__ == sorted(wire.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
