"""Requests with grammars in the loop, in turn and one step ahead: waiting for a compile, failing, drawing."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import jsonschema
import pytest

from octavo import wire
from octavo.options import Choice, Grammar, JsonObject, JsonSchema, Regex, SamplingParams, Structured
from octavo_engine.steps import Steps
from octavo_engine.structured import compiler
from octavo_engine.structured.compiler import Compiler
from octavo_engine.text import Text
from octavo_engine.text.pieces import StreamFactory
from tests.core.loop import CLIENT, Engine, Mail, ends, requests, script_of, texts
from tests.core.test_core import ScriptedMailbox
from tests.execution.driver import VOCAB

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
EOS = 2
FIRST = 3  # of the printable ASCII characters
PAIRS = ['{"', '":', '"}', '",', "aa", "ab", "10", "x1", "yes", "no", " a", "}}"]


class Ascii:
    """A tokenizer of ASCII, a token a character, and some of several; the model has more ids than that."""

    vocab_size = FIRST + 95 + len(PAIRS)
    table: ClassVar[dict[int, None]] = dict.fromkeys(range(VOCAB))
    open = False
    pieces = ("<0>", "<1>", "</s>", *map(chr, range(32, 127)), *PAIRS)
    assert vocab_size < VOCAB

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(character) - 32 + FIRST for character in text]

    def stream_factory(self, skip_special_tokens: bool) -> StreamFactory:
        return lambda visible: self

    def feed(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces[token] if FIRST <= token < self.vocab_size else "?" for token in token_ids)

    def flush(self) -> str:
        return ""

    def token_bytes(self) -> tuple[list[bytes], frozenset[int]]:
        return [piece.encode() for piece in self.pieces], frozenset(range(FIRST))

    def is_special(self, token_id: int) -> bool:
        return token_id < FIRST


TEXT = Text(Ascii(), eos_token_ids=[EOS])
SPECS: list[tuple[Structured, str]] = [
    (Choice(["yes", "no", "a little"]), "yes|no|a little"),
    (Regex(r"[ab]{2,12}-\d{3}"), r"[ab]{2,12}-[0-9]{3}"),
    (Grammar('root ::= "(" root ")" | "x"'), r"\(*x\)*"),
    (JsonSchema(SCHEMA), ""),
    (JsonObject(), ""),
]


def asked(request: int, structured: Structured, **params: Any) -> wire.Generate:
    return wire.Generate(request, SamplingParams(structured=structured, **params), token_ids=[5, 6, 7, request % 200])


def load(seed: int) -> list[wire.Generate]:
    """Half of it free, half of it bound by a grammar, with all else that a request may ask for."""
    rng = random.Random(seed)
    free = requests(seed, 10)
    bound = []
    for i in range(14):
        params: dict[str, Any] = {
            "n": rng.choice([1, 1, 3]), "max_tokens": rng.choice([40, 6]), "seed": rng.getrandbits(40),
            "temperature": rng.choice([0, 1, 1.4]), "logprobs": rng.choice([None, 1]),
            "repetition_penalty": rng.choice([1, 1.2]), "min_tokens": rng.choice([0, 5]),
            "stop": rng.choice([(), ("a-",)]), "bad_words": rng.choice([(), ("yes",)]), "priority": rng.choice([0, 1]),
        }  # fmt: skip
        bound.append(asked(100 + i, SPECS[i % len(SPECS)][0], **params))
    mixed = free + bound
    rng.shuffle(mixed)
    return mixed


def fits(structured: Structured, text: str) -> bool:
    if isinstance(structured, JsonObject):
        return isinstance(json.loads(text), dict)
    if isinstance(structured, JsonSchema):
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    return re.fullmatch(dict(SPECS)[structured], text) is not None


def test_outputs_fit_and_are_the_same_in_turn_ahead_and_preempted() -> None:
    generates = load(3)
    found, preempted = [], []
    for overlap in (False, True):
        for num_pages in (60, 11):
            engine = Engine(overlap=overlap, num_pages=num_pages)
            found.append(texts(engine.run(script_of(generates, 1), TEXT)))
            preempted.append(engine.stats["num_preemptions"] > 0)
            assert not overlap or engine.queue.most == 2
    assert preempted == [False, True, False, True]
    assert all(other == found[0] for other in found[1:])
    whole = 0
    for generate in generates:
        for text, ids, _, reason, stop in found[0][generate.request_id] if generate.params.structured else ():
            if reason == "stop" and stop is None:
                assert ids[-1] == EOS
                assert generate.params.structured is not None
                assert fits(generate.params.structured, text), text
                whole += 1
    assert whole > 10


def failed(mail: ScriptedMailbox) -> dict[int, tuple[str, str]]:
    return {f.request_id: (f.code, f.message) for f in mail.of(CLIENT, wire.Failed)}


BAD: list[tuple[Structured, str]] = [
    (Regex("(a"), "unclosed group"),
    (JsonSchema({"not": {"type": "string"}}), r'"not".*strict=False'),
    (JsonSchema({"$ref": "https://example.org/x"}), "example.org"),
    (JsonSchema({"type": "strong"}), "strong"),
    (JsonSchema({"type": "integer", "minimum": 3, "maximum": 1}), "minimum"),
    (Grammar("start: nowhere"), "nowhere"),
    (Grammar("neither"), "GBNF"),
    (Grammar('root ::= "a\n' + "x ::= y\n" * 300), "end of input at line 302"),  # long enough for a process of its own
    (Choice(["x" * 5000]), "5000 bytes of Choice; EngineOptions.max_grammar_bytes=4000"),
]


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "ahead"])
def test_a_bad_grammar_fails_alone(overlap: bool) -> None:
    free = requests(1, 8)
    expected = texts(Engine(overlap=False).run([[(CLIENT, generate) for generate in free]], TEXT))
    bad = [asked(50 + i, structured) for i, (structured, _) in enumerate(BAD)]
    mail = Engine(overlap=overlap).run(
        [[(CLIENT, g) for g in free], [(CLIENT, g) for g in bad]], TEXT, max_grammar_bytes=4000
    )
    reasons = failed(mail)
    assert reasons.keys() == {generate.request_id for generate in bad}
    for i, (_, words) in enumerate(BAD):
        code, message = reasons[50 + i]
        assert code == "invalid_grammar"
        assert re.search(words, message, re.DOTALL), message
    assert texts(mail) == expected


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "ahead"])
def test_a_grammar_that_gets_too_much_on_the_way_fails_alone(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiler.LIMITS, "max_items_in_row", 60)
    many = " | ".join(f"r{i}" for i in range(80)) + "\n" + "\n".join(f'r{i}: "x" r{i} | "{i}"' for i in range(80))
    heavy = Grammar(f'start: "ab" rest\nrest: {many}')
    free = requests(2, 6)
    expected = texts(Engine(overlap=False).run([[(CLIENT, generate) for generate in free]], TEXT))
    engine = Engine(overlap=overlap)
    monkeypatch.setattr(Steps, "_run_singly", None)  # no step is run again
    mail = engine.run([[(CLIENT, generate) for generate in free], [(CLIENT, asked(70, heavy))]], TEXT)
    assert failed(mail).keys() == {70}
    code, message = failed(mail)[70]
    assert code == "invalid_grammar"
    assert "items" in message
    found = texts(mail)
    del found[70]
    assert found == expected


class Gate:
    """Compiles begin when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.begun = threading.Event(), threading.Event()
        compile_now = Compiler.compile

        def wait(me: Compiler, spec: Structured, timeout: float) -> Any:
            self.begun.set()
            assert self.open.wait(20)
            return compile_now(me, spec, timeout)

        monkeypatch.setattr(Compiler, "compile", wait)


class OpensLater(threading.Timer):
    def __init__(self, gate: Gate) -> None:
        super().__init__(0.3, gate.open.set)
        self.start()


def test_others_run_while_it_compiles_and_one_compile_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    generates = [asked(i, JsonSchema(SCHEMA), max_tokens=40, seed=i) for i in range(6)]
    free = wire.Generate(50, SamplingParams(max_tokens=10, ignore_eos=True), token_ids=[9])
    order: list[bool] = []  # whether it has a grammar
    script: Mail = [[(CLIENT, generate) for generate in generates], [(CLIENT, free)], *([] for _ in range(15))]
    engine = Engine(overlap=False)
    deliver = engine.scheduler.commit

    def watch(plan: Any, *drawn: Any) -> Any:
        advanced = deliver(plan, *drawn)
        order.extend(sequence.request.grammar is not None for sequence in advanced if sequence is not None)
        if order.count(False) == 10:
            gate.open.set()
        return advanced

    monkeypatch.setattr(engine.scheduler, "commit", watch)
    mail = engine.run(script, TEXT)
    assert not any(order[:10])  # it did not wait for the grammar, and they did
    assert ends(mail) == [0, 1, 2, 3, 4, 5, 50]
    assert engine.stats["grammars_compiled"] == 1
    assert engine.stats["num_grammars_pending"] == 0


def test_an_abort_and_a_deadline_while_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    generates = [
        asked(1, Choice(["yes"])),
        asked(2, Choice(["yes"]), queue_timeout=0.05),
        asked(3, Choice(["no"])),
        asked(4, Choice(["yes"])),
    ]
    OpensLater(gate)
    mail = Engine(overlap=False).run(
        [[(CLIENT, generate) for generate in generates], [(CLIENT, wire.Abort([1, 3]))]], TEXT
    )
    assert {f.request_id: f.choices[0].finish_reason for f in mail.of(CLIENT, wire.Finished)} == {
        1: "abort",
        3: "abort",
        4: "stop",
    }
    (late,) = mail.of(CLIENT, wire.Failed)
    assert (late.request_id, late.code, late.which) == (2, "timeout", "queue")
    assert texts(mail)[4][0][0] == "yes"


def test_a_compile_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    OpensLater(Gate(monkeypatch))
    mail = Engine(overlap=False).run([[(CLIENT, asked(1, Choice(["yes"])))]], TEXT, grammar_timeout=0.05)
    assert failed(mail)[1] == (
        "invalid_grammar",
        "structured: not compiled within EngineOptions.grammar_timeout=0.05 s",
    )


def test_min_tokens_and_allowed_token_ids_leave_the_end() -> None:
    ids = tuple(Ascii().encode("yes", False))
    mail = Engine(overlap=False).run(
        [
            [
                (CLIENT, asked(1, Choice(["yes"]), min_tokens=20, max_tokens=30)),
                (CLIENT, asked(2, Regex("a+"), min_tokens=9, max_tokens=30)),
                (CLIENT, asked(3, Choice(["yes", "no"]), allowed_token_ids=ids)),
                (CLIENT, asked(4, Choice(["no"]), allowed_token_ids=ids)),
            ]
        ],
        TEXT,
    )
    found = texts(mail)
    assert (found[1][0][0], found[1][0][3]) == ("yes", "stop")
    assert len(found[2][0][1]) >= 9
    assert (found[3][0][0], found[3][0][1]) == ("yes", [*ids, EOS])
    assert failed(mail)[4][0] == "failed"
    assert "structured" in failed(mail)[4][1]


@pytest.mark.parametrize(
    ("text", "words"),
    [(Text(eos_token_ids=[2]), "structured needs a tokenizer"), (Text(Ascii()), "end-of-sequence token")],
    ids=["no tokenizer", "no end"],
)
def test_what_the_model_must_have(text: Text, words: str) -> None:
    mail = Engine(overlap=False).run([[(CLIENT, asked(1, Choice(["yes"])))]], text)
    assert words in failed(mail)[1][1]
