"""Grammars of forced calls: what they let through, and that a parser reads it."""

from __future__ import annotations

import json

import llguidance
import pytest

from octavo.openai.forcing import calls_only
from octavo.openai.reasoning import REASONING
from octavo.openai.tool_fields import Function, toolbox
from octavo.openai.tools import FORMATS, Call
from octavo.openai.wrong import WrongField
from octavo.options import Grammar, JsonObject, JsonSchema, Regex, Structured

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"type": "string", "minLength": 2}},
}
WEATHER, NOW = Function("weather", parameters=CITY), Function("now")
TOKENIZER = llguidance.LLTokenizer("byte")
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def taken(grammar: Grammar, text: str) -> bool:
    """Whether the grammar lets the whole text through, and lets it end there."""
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.grammar_from("grammar", grammar.text))
    tokens = TOKENIZER.tokenize_str(text)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("form", "text", "count"),
    [
        ("hermes", HERMES, 1),
        ("hermes", f"{HERMES}\n{HERMES_NOW}", 2),
        ("llama", '[{"name": "weather", "arguments": {"city": "Paris"}}]', 1),
        ("mistral", '[{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', 2),
    ],
)
def test_calls_are_let_through_and_read(form: str, text: str, count: int) -> None:
    tools = toolbox([WEATHER, NOW], "required", None)
    grammar, read_as = calls_only(tools, form, None)
    assert taken(grammar, text)
    alone, _ = calls_only(toolbox([WEATHER, NOW], "required", False), form, None)
    assert taken(alone, text) == (count == 1)
    parser = FORMATS[read_as].parser(tools.schemas)
    assert sum(isinstance(event, Call) for event in parser.feed(text) + parser.finish()) == count


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "",
        HERMES.replace("weather", "climate"),
        HERMES.replace("Paris", "P"),
        HERMES.replace("city", "town"),
        HERMES_NOW.replace("{}", '{"zone": 1}'),
        HERMES + " So.",
    ],
)
def test_nothing_else_is(text: str) -> None:
    grammar, _ = calls_only(toolbox([WEATHER, NOW], "required", None), "hermes", None)
    assert not taken(grammar, text)


def test_a_named_function_is_called_once() -> None:
    tools = toolbox([WEATHER, NOW], {"type": "function", "function": {"name": "weather"}}, None)
    grammar, _ = calls_only(tools, "hermes", None)
    assert taken(grammar, HERMES)
    assert not taken(grammar, HERMES_NOW)
    assert not taken(grammar, f"{HERMES}\n{HERMES}")


@pytest.mark.parametrize("marks", sorted(REASONING))
def test_thoughts_that_the_prompt_has_begun_may_end_first(marks: str) -> None:
    grammar, _ = calls_only(toolbox([WEATHER], "required", None), "hermes", REASONING[marks])
    end = REASONING[marks].end
    assert taken(grammar, f"Hm, [so] <b>\n{end}\n\n{HERMES}")
    assert taken(grammar, end + HERMES)
    assert not taken(grammar, f"Hm{end}So.")


@pytest.mark.parametrize(
    ("otherwise", "text"),
    [(JsonSchema({"type": "object", "required": ["x"]}), '{"x": 1}'), (JsonObject(), "{}")],
)
def test_json_may_stand_instead(otherwise: Structured, text: str) -> None:
    grammar, _ = calls_only(toolbox([WEATHER], "auto", None), "hermes", None, otherwise)
    assert taken(grammar, text)
    assert taken(grammar, HERMES)
    assert not taken(grammar, "So.")


def test_nothing_else_may_stand_beside_tools() -> None:
    with pytest.raises(WrongField, match="response_format"):
        calls_only(toolbox([WEATHER], "auto", None), "hermes", None, Regex("a+"))


def test_names_are_text() -> None:
    odd = json.loads('"a.b-c_D"')
    grammar, _ = calls_only(toolbox([Function(odd)], "required", None), "hermes", None)
    assert taken(grammar, HERMES_NOW.replace("now", odd))
