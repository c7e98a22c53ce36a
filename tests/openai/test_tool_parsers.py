"""Tool calls in a model's text: every family's way of writing them, and what holds for any text and any cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.openai.tools import FORMATS, Arguments, Call, Event, Text, format_of, merged

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {"type": "object", "properties": {}},
}
PARIS = {"city": 'Paris "é" {[(,)]}', "days": 2}


def parse(form: str, pieces: Iterable[str]) -> list[Event]:
    parser = FORMATS[form].parser(TOOLS)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged(events + parser.finish())


def calls(events: Iterable[Event]) -> list[tuple[str, Any]]:
    names, texts = [], []
    for event in events:
        match event:
            case Call(index, name):
                assert index == len(names)
                names.append(name)
                texts.append("")
            case Arguments(index, text):
                assert index == len(names) - 1
                texts[-1] += text
    return [(name, json.loads(text)) for name, text in zip(names, texts, strict=True)]


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def both(paris: str, now: str = "{}", name: str = "name", arguments: str = "arguments", join: str = ", ") -> str:
    return join.join(f'{{"{name}": "{n}", "{arguments}": {a}}}' for n, a in (("weather", paris), ("now", now)))


P = json.dumps(PARIS, ensure_ascii=False)
DEEPSEEK = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
# Every one of these calls weather(**PARIS) and now().
WRITTEN: list[tuple[str, str]] = [
    ("hermes", "".join(f"<tool_call>\n{one}\n</tool_call>\n" for one in both(P, join="\n").split("\n"))),
    ("hermes", f"<tool_call>[{both(json.dumps(PARIS, indent=2))}]</tool_call>"),
    ("hermes", f'<tool_call>{{"arguments": {P}, "name": "weather"}}</tool_call><tool_call>{{"name": "now"}}'),
    ("hermes", f"<tool_call>[{both(json.dumps(P), 'null')}]"),
    ("mistral", f"[TOOL_CALLS] [{both(P)}]"),
    ("mistral", f"[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{P}[TOOL_CALLS]now{{}}"),
    ("llama", both(P, arguments="parameters", join="; ")),
    ("llama", f"<|python_tag|>{both(P, arguments='parameters', join=chr(10))}<|eom_id|>"),
    ("llama", f"<function=weather>{P}</function><function=now>{{}}</function>"),
    ("granite", f"<|tool_call|>[{both(P)}]"),
    ("granite", f"<tool_call>[{both(P)}]"),
    ("phi4_mini", f"<|tool_call|>[{both(P)}]<|/tool_call|>"),
    ("phi4_mini", f"functools[{both(P)}]"),
    ("cohere", f"<|START_ACTION|>[{both(P, name='tool_name', arguments='parameters')}]<|END_ACTION|>"),
    ("cohere", f"Action: ```json\n[{both(P, name='tool_name', arguments='parameters')}]\n```"),
    (
        "internlm",
        "<|action_start|><|plugin|>\n" + both(P, join="<|action_end|>\n<|action_start|> <|plugin|>") + "<|action_end|>",
    ),
    (
        "deepseek",
        DEEPSEEK.format(
            "\n".join(
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{a}\n```<｜tool▁call▁end｜>"
                for name, a in (("weather", P), ("now", "{}"))
            )
        ),
    ),
    (
        "deepseek",
        DEEPSEEK.format(
            f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{P}<｜tool▁call▁end｜>"
            "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        ),
    ),
    (
        "qwen3_coder",
        f"<tool_call>\n<function=weather>\n<parameter=city>\n{PARIS['city']}\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    (
        "qwen3_coder",
        f"<seed:tool_call>\n<function=weather>\n<parameter=city>{PARIS['city']}</parameter>\n<parameter=days>2"
        "</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=now>\n</function>\n"
        "</seed:tool_call>",
    ),
    (
        "glm45",
        f"<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{PARIS['city']}</arg_value>\n<arg_key>days</arg_key>"
        "\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
    ),
    (
        "glm45",
        f"<tool_call>weather<arg_key>city</arg_key><arg_value>{PARIS['city']}</arg_value><arg_key>days</arg_key>"
        "<arg_value>2</arg_value></tool_call><tool_call>now</tool_call>",
    ),
    ("glm4", f"weather\n{P}\nnow\n{{}}"),
    ("cohere", f"<|START_ACTION|>[{both(P)}]<|END_ACTION|><|START_RESPONSE|><|END_RESPONSE|>"),
    ("pythonic", f"<function_calls>weather(city={PARIS['city']!r}, days=2)\nnow()</function_calls>"),
    ("pythonic", f"[weather(city={PARIS['city']!r}, days=2), now()]"),
    ("pythonic", f"<|tool_call_start|>[weather({PARIS['city']!r}, 2), now()]<|tool_call_end|>"),
    ("pythonic", f"```tool_code\nweather(days=2, city={PARIS['city']!r})\nnow()\n```"),
    ("json", both(P, join="\n")),
    ("json", f"```json\n[{both(P)}]\n```"),
    ("json", f'[{{"type": "function", "function": {both(P, join="}, {" + chr(34) + "function" + chr(34) + ": ")}}}]'),
]


@pytest.mark.parametrize(("form", "text"), WRITTEN, ids=[f"{form}-{i}" for i, (form, _) in enumerate(WRITTEN)])
def test_each_family_s_calls(form: str, text: str) -> None:
    for before, after in (("", ""), ("Let me see.\n", ""), ("", "\nDone.")):
        events = parse(form, [before + text + after])
        assert calls(events) == [("weather", PARIS), ("now", {})], events
        assert text_of(events).strip() == (before + after).strip()
        assert parse(form, before + text + after) == events


# Pieces of calls, from which hypothesis makes texts that are nearly calls.
MARKS = sorted({mark for _, text in WRITTEN for mark in text.replace(P, "\0").split("\0")} | {P, "{", "[", '"', "\n"})


@settings(max_examples=300)
@given(st.data())
def test_any_cut_of_any_text_gives_the_same_calls(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(sorted(FORMATS)))
    own = [text for name, text in WRITTEN if name == form]
    part = st.one_of(st.sampled_from(own), st.sampled_from(MARKS), st.text("<{[\"'a(,:`;}])> \n|", max_size=6))
    part = st.one_of(part, part.map(lambda s: s[: len(s) // 2]), part.map(lambda s: s[len(s) // 2 :]))
    text = "".join(data.draw(st.lists(part, max_size=6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(form, [text])
    assert parse(form, pieces) == whole == parse(form, text)
    if not any(isinstance(event, Call) for event in whole) and "_RESPONSE|>" not in text:
        assert text_of(whole) == text  # nothing is lost


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "<tool_call>{no json}</tool_call>"),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city'[:40]),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("hermes", "[" * 5000),
        ("llama", '{"name": "unknown", "parameters": {}}'),
        ("llama", '{"name": "weather"}'),
        ("llama", '<|python_tag|>print("weather")'),
        ("json", 'Say {"name": "weather", "arguments": {}} like that'),
        ("json", '```json\n{"city": "Paris"}\n```'),
        ("mistral", "[TOOL_CALLS] I have none"),
        ("pythonic", "[weather(city=unquoted)]"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[weather(" + "[" * 500 + "]" * 500 + ")]"),
        ("qwen3_coder", "<function=weather>city is Paris</function>"),
        ("deepseek", "<｜tool▁call▁begin｜>a name with spaces<｜tool▁sep｜>{}"),
        ("glm4", 'The weather\n{"city": "Paris"}'),
        ("glm4", "weather is\nnow or\nnever\nweather\n[]"),
        ("glm4", "weather"),
        ("glm45", "<tool_call>two words</tool_call>"),
        ("glm45", "<tool_call>weather<arg_key>city</arg_key>Paris</tool_call>"),
        ("pythonic", "<function_calls>unknown(a=1)</function_calls>"),
    ],
)
def test_what_is_no_call_stays_text(form: str, text: str) -> None:
    assert parse(form, [text]) == [Text(text)]


def test_arguments_come_as_they_are_written() -> None:
    parser = FORMATS["hermes"].parser(TOOLS)
    assert parser.feed('<tool_call>{"name": "weather", "arguments": {') == []
    assert parser.feed('"') == [Call(0, "weather"), Arguments(0, '{"')]
    assert parser.feed('city": "Par') == [Arguments(0, 'city": "Par')]
    assert parser.feed("is\n") == [Arguments(0, "is\\n")]  # a raw line break, which JSON has not
    assert parser.feed('"}}</tool_call>') == [Arguments(0, '"}')]
    assert parser.finish() == []


def test_arguments_that_break_off_are_kept_as_they_are() -> None:
    events = parse("hermes", '<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call> So?')
    assert events == [Call(0, "weather"), Arguments(0, '{"city": Paris}}'), Text(" So?")]
    events = parse("pythonic", "[weather(city='Paris', days=two)]")
    assert events[0] == Call(0, "weather")
    assert isinstance(events[1], Arguments)
    assert events[1].text.startswith('{"city": "Paris"')
    assert events[1].text.endswith("days=two)]")


def test_marks_that_only_frame_the_answer_are_not_said() -> None:
    assert parse("cohere", "<|START_RESPONSE|>It is <b>warm</b>.<|END_RESPONSE|>") == [Text("It is <b>warm</b>.")]


# What tells each family's template apart: its own words about calls.
TEMPLATES = [
    (
        "Qwen2.5",
        "Qwen2ForCausalLM",
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}',
        "hermes",
    ),
    ("Qwen3", "Qwen3ForCausalLM", "<tool_call>\\n</tool_call> <tool_response> </think>", "hermes"),
    ("Qwen3-Coder", "Qwen3MoeForCausalLM", "<tool_call>\n<function=x>\n<parameter=y>", "qwen3_coder"),
    ("Seed-OSS", "SeedOssForCausalLM", "<seed:tool_call>\n<function=x>\n<parameter=y>", "qwen3_coder"),
    ("EXAONE 4", "Exaone4ForCausalLM", "<tool_call> </tool_call> <tool_result>", "hermes"),
    ("SmolLM3", "SmolLM3ForCausalLM", "xml_tools <tool_call> </tool_call> <code>", "hermes"),
    ("ERNIE 4.5", "Ernie4_5ForCausalLM", "<tool_call> </tool_call> <tool_output>", "hermes"),
    ("MiniCPM", "MiniCPMForCausalLM", "<tool_call>", "hermes"),
    ("GLM-4.5", "Glm4MoeForCausalLM", "<tool_call>{name}\n<arg_key>k</arg_key> <|observation|>", "glm45"),
    ("GLM-4", "GlmForCausalLM", "<|observation|>", "glm4"),
    ("GLM-4-0414", "Glm4ForCausalLM", "<|system|> <|assistant|>", "glm4"),
    ("Mistral", "MistralForCausalLM", "[AVAILABLE_TOOLS] [TOOL_CALLS] [ARGS]", "mistral"),
    ("Mistral 7B", "MistralForCausalLM", "[INST]", "mistral"),
    (
        "Llama 3.1",
        "LlamaForCausalLM",
        '<|python_tag|> "parameters": dictionary of argument name and its value',
        "llama",
    ),
    ("Llama 3.2", "LlamaForCausalLM", '"parameters": dictionary of argument name and its value', "llama"),
    ("Llama, pythonic", "LlamaForCausalLM", "[func_name1(params_name1=params_value1)]", "pythonic"),
    ("OLMo 3", "Olmo3ForCausalLM", "<functions> <function_calls></function_calls>", "pythonic"),
    ("Gemma 3", "Gemma3ForCausalLM", "<start_of_turn>", "pythonic"),
    ("Granite 3", "GraniteForCausalLM", "<|tool_call|> <|end_of_role|>", "granite"),
    ("Command R7B", "Cohere2ForCausalLM", "<|START_ACTION|> <|START_RESPONSE|>", "cohere"),
    ("Command R", "CohereForCausalLM", "Write 'Action:' followed by a json-formatted list: Action: ```json", "cohere"),
    ("Phi-4-mini", "Phi3ForCausalLM", "<|tool|> <|/tool|>", "phi4_mini"),
    ("InternLM2.5", "InternLM2ForCausalLM", "<|action_start|><|plugin|>", "internlm"),
    ("DeepSeek-R1", "LlamaForCausalLM", "<｜tool▁calls▁begin｜>", "deepseek"),
    ("another", "LlamaForCausalLM", "", "json"),
]


@pytest.mark.parametrize(("architecture", "words", "form"), [t[1:] for t in TEMPLATES], ids=[t[0] for t in TEMPLATES])
def test_the_format_is_told_by_the_template(architecture: str, words: str, form: str) -> None:
    assert format_of(f"{{% if tools %}}{words}", architecture) == form


@pytest.mark.parametrize("template", ["{{ messages }}", None])
def test_a_template_without_a_word_of_tools_is_told_of_them_as_hermes_is(template: str | None) -> None:
    assert format_of(template, "LlamaForCausalLM") == "hermes"
