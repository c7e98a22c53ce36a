"""What compiles, and that what is drawn through its masks fits, whatever the tokenizer's family."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from octavo.options import Choice, Grammar, JsonObject, JsonSchema, Regex, Structured
from octavo_engine.structured import InvalidGrammar, Matcher
from octavo_engine.structured.compiler import Compiler
from octavo_engine.text import Text, TextError, load_text
from octavo_engine.text.slow import SlowBackend
from tests.text.conftest import train_byte_level, write_folder

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "born": {"type": "string", "format": "date"},
        "size": {"enum": ["S", "M", "größer", "日本"]},
        "tags": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 30}, "maxItems": 3},
        "more": {"$ref": "#/$defs/node"},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
}


def byte_level(folder: Path) -> Text:
    return load_text(write_folder(folder, train_byte_level(), tokenizer_config={"eos_token": "</s>"}))


def sentencepiece(folder: Path) -> Text:
    pieces = ["▁", "▁{", '{"', '":', "▁yes", "yes", "größer", '"', ":", ",", "a", "b", "no", "▁n", *"0123456789-{}[]"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": [-float(i) for i in range(len(tokens))],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "eos_token_id": 2,
    }
    return load_text(metadata={f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


@pytest.fixture(scope="module", params=[byte_level, sentencepiece], ids=["byte level", "SentencePiece"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    made: Text = request.param(tmp_path_factory.mktemp("tokenizer"))
    return made


@pytest.fixture(scope="module")
def compiler(text: Text) -> Compiler:
    return Compiler(text)


def allowed(matcher: Matcher, size: int) -> list[int]:
    row = np.full(-(-size // 32) + 3, -1, np.int32)  # longer than the tokenizer: nothing beyond it may be allowed
    matcher.fill(row)
    tokens: list[int] = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    assert max(tokens) < size
    return tokens


def drawn(text: Text, matcher: Matcher, seed: int, limit: int = 400) -> str | None:
    """An output drawn at random, None if it does not end; ends are preferred. On the way the matcher is made anew."""
    draw = random.Random(seed)
    output: list[int] = []
    start = matcher.copy()
    closing = {i for i, piece in enumerate(text.token_bytes()[0]) if piece in (b'"', b"}", b"]")}
    for _ in range(limit):
        tokens = allowed(matcher, text.vocab_size)
        if text.eos_token_ids & set(tokens):
            if matcher.only_ends or draw.random() < 0.5:
                stream = text.stream_after_text()
                return stream.feed(output) + stream.flush()
            tokens = [token for token in tokens if token not in text.eos_token_ids]
        tokens = [token for token in tokens if token in closing] or tokens if draw.random() < 0.6 else tokens
        output.append(draw.choice(tokens))
        if draw.random() < 0.1:
            matcher = start.copy()
            matcher.push(output)
        else:
            matcher.push(output[-1:])
    return None


def of_schema(value: str) -> bool:
    jsonschema.validate(json.loads(value), SCHEMA)
    return True


KINDS: list[tuple[Structured, Callable[[str], object]]] = [
    (JsonSchema(SCHEMA), of_schema),
    (JsonObject(), lambda value: isinstance(json.loads(value), dict)),
    (Regex(r"(yes|größer) [a-f]{2,5}\d"), re.compile(r"(yes|größer) [a-f]{2,5}[0-9]").fullmatch),
    (Regex("a/b?\"'\n+"), re.compile("a/b?\"'\n+").fullmatch),
    (Choice(["yes", "no", 'a "quoted"\nline', "日本"]), ["yes", "no", 'a "quoted"\nline', "日本"].__contains__),
    (Grammar('root ::= "<" [a-c]+ ("," [a-c]+)* ">"'), re.compile("<[abc]+(,[abc]+)*>").fullmatch),
    (Grammar('start: "call " %json {"type": "boolean"} "!"'), re.compile("call (true|false)!").fullmatch),
    (Grammar('root ::= "x" y\n' + "".join(f'y{i} ::= "a"\n' for i in range(200)) + 'y ::= y7'), "xa".__eq__),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "fits"), KINDS, ids=[type(spec).__name__ for spec, _ in KINDS])
def test_what_is_drawn_fits(text: Text, compiler: Compiler, spec: Structured, fits: Callable[[str], object]) -> None:
    matcher = compiler.compile(spec, 20)
    outputs = [drawn(text, matcher.copy(), seed) for seed in range(12)]
    whole = [output for output in outputs if output is not None]
    assert len(whole) >= 4
    for output in whole:
        assert fits(output), output


def test_space_between_the_parts_of_a_value_is_bounded(text: Text, compiler: Compiler) -> None:
    pieces = text.token_bytes()[0]
    spaces = {i for i, piece in enumerate(pieces) if piece and not piece.strip(b" \n\t")}
    matcher = compiler.compile(JsonObject(), 20)
    matcher.push([pieces.index(b"{")])
    for _ in range(60):
        free = spaces & set(allowed(matcher, len(pieces)))
        if not free:
            return
        matcher.push([min(free, key=lambda token: len(pieces[token]))])
    pytest.fail("space without end")


def test_special_tokens_are_no_text(text: Text, compiler: Compiler) -> None:
    _, special = text.token_bytes()
    matcher = compiler.compile(Regex(r"(.|\n)*"), 20)
    assert special & set(allowed(matcher, text.vocab_size)) == text.eos_token_ids


def test_what_can_not_be_enforced_is_refused_or_left_out(compiler: Compiler) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InvalidGrammar, match=r'Unimplemented keys: \["uniqueItems"\]; strict=False leaves out'):
        compiler.compile(JsonSchema(schema), 20)
    compiler.compile(JsonSchema(schema, strict=False), 20)
    compiler.compile(JsonSchema({"type": "string", "format": "of our own"}), 20)  # JSON Schema: a note, no rule


def test_rewriting_a_grammar_takes_no_longer_than_it_may(compiler: Compiler) -> None:
    with pytest.raises(InvalidGrammar, match=r"EngineOptions\.grammar_timeout=0\.001 s"):
        compiler.compile(Grammar('root ::= "a"\n' * 1000), 0.001)


def test_tokenizers_that_can_not_be_used() -> None:
    with pytest.raises(TextError, match="no tokenizer"):
        Compiler(Text(eos_token_ids=[2]))

    class Slow(SlowBackend):
        def __init__(self) -> None:
            self._special = frozenset()

    with pytest.raises(TextError, match="no text of their own"):
        Compiler(Text(Slow(), eos_token_ids=[2]))
