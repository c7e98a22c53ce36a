"""What an output may be asked to be: checked before anything is sent, the same after the wire."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from octavo import Choice, Grammar, InvalidOption, JsonObject, JsonSchema, Regex, SamplingParams, wire
from octavo.options import Structured
from octavo.testing import Reply, ScriptedEngine

GOOD: list[Structured] = [
    JsonSchema({"type": "object"}),
    JsonSchema('{"type": "object"}', strict=False),
    JsonObject(),
    Regex("a+"),
    Choice(["a", "b"]),
    Grammar('root ::= "a"'),
]


@pytest.mark.parametrize("structured", GOOD, ids=repr)
def test_the_wire_and_a_dict_of_them(structured: Structured) -> None:
    params = SamplingParams(structured=structured)
    (sent,) = wire.decode_to_engine(wire.encode([wire.Generate(1, params, text="x")]))
    assert isinstance(sent, wire.Generate)
    assert sent.params == params
    assert {structured: 1}[sent.params.structured] == 1  # type: ignore[index]


def test_a_schema_is_the_same_as_dict_and_text() -> None:
    assert JsonSchema({"type": "object"}) == JsonSchema('{"type":"object"}')
    assert JsonSchema({"b": 1, "a": 2}).schema == '{"b":1,"a":2}'  # in its order


CYCLE: dict[str, Any] = {}
CYCLE["x"] = CYCLE


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: JsonSchema("{"), "schema"),
        (lambda: JsonSchema("[]"), "schema"),
        (lambda: JsonSchema(7), "schema"),
        (lambda: JsonSchema({"a": {1, 2}, "b": object()}), "schema"),
        (lambda: JsonSchema(CYCLE), "schema"),
        (lambda: JsonSchema("[" * 100_000), "schema"),
        (lambda: JsonSchema({}, strict="yes"), "strict"),
        (lambda: Regex(""), "pattern"),
        (lambda: Regex(b"a"), "pattern"),
        (lambda: Choice([]), "choices"),
        (lambda: Choice("abc"), "choices"),
        (lambda: Choice(["a", ""]), "choices"),
        (lambda: Choice(["a", 1]), "choices"),
        (lambda: Grammar("\n"), "text"),
        (lambda: Grammar(None), "text"),
    ],
)
def test_what_is_refused(make: Any, field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        make()
    assert caught.value.field == f"structured.{field}"
    assert len(str(caught.value)) < 400


def test_sampling_params_take_nothing_else() -> None:
    for wrong in ("{}", {"type": "object"}, JsonSchema):
        with pytest.raises(InvalidOption, match="structured="):
            SamplingParams(structured=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="ignore_eos"):
        SamplingParams(structured=JsonObject(), ignore_eos=True)


@pytest.mark.anyio
async def test_a_grammar_that_does_not_compile_is_typed() -> None:
    reply = Reply(fail="invalid_grammar", message="structured: unclosed group")
    async with ScriptedEngine({"x": reply}).client() as client:
        with pytest.raises(octavo.InvalidGrammar, match="unclosed group"):
            await client.generate("x", SamplingParams(structured=Regex("(a")))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
