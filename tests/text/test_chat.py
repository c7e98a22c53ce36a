"""Chat templates: what transformers gives them, and how they fail."""

from __future__ import annotations

from datetime import datetime

import pytest

from octavo_engine.text import TextError
from octavo_engine.text.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "<é>"}, {"role": "assistant", "content": "yo"}]


def render(source: str, **tokens: str) -> str:
    return ChatTemplate(source, tokens).render(MESSAGES)


def test_blocks_leave_no_blank_lines() -> None:
    source = "{% for m in messages %}\n  {% if m.role == 'user' %}\nU:{{ m.content }}\n  {% endif %}\n{% endfor %}\nend"
    assert render(source) == "U:<é>\nend"


def test_helpers() -> None:
    assert render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "<é>"}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "user"
    source = "{% for m in messages %}{% generation %}{{ m.content }}!{% endgeneration %}{% endfor %}"
    assert render(source) == "<é>!yo!"
    source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    assert render(source) == "2"


def test_variables() -> None:
    assert render("{{ bos_token }}{{ add_generation_prompt }}{{ tools is none }}", bos_token="<s>") == "<s>TrueTrue"
    assert render("{{ eos_token is defined }}") == "False"


def test_the_templates_own_words() -> None:
    with pytest.raises(TextError, match="refused the messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "does not compile"),
        ("{% for %}{{ unclosed", "does not compile"),
        ("{{ messages[0].nothing.more }}", "refused"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
    ],
)
def test_failures_are_typed(source: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        render(source)


def test_halves_of_surrogate_pairs_are_refused() -> None:
    """JSON can spell them (a call's arguments), UTF-8 can't."""
    calls = [{"function": {"name": "f", "arguments": '{"a": "\\ud83d"}'}}]
    source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
    with pytest.raises(TextError, match="surrogates not allowed"):
        ChatTemplate(source, {}).render([{"role": "assistant", "content": None, "tool_calls": calls}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(TextError):
        render(source)


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(TextError):
        ChatTemplate("{{ messages[0].update({'role': 'system'}) }}", {}).render(messages)
    assert messages == [{"role": "user", "content": "x"}]


# ---- going on with the final message ---------------------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("said", ["yo", "yo ", "", "y <assistant>", "<\u00e9></>\u2063"])
def test_the_answer_goes_on_with_the_final_message(said: str) -> None:
    messages = [MESSAGES[0], {"role": "assistant", "content": said}]
    prompt = ChatTemplate(TURNS, {}).render(messages, {"continue_final_message": True})
    assert prompt == f"<user><é></><assistant>{said}"
    assert messages[1]["content"] == said
    plain = ChatTemplate(TURNS, {}).render(messages, {"continue_final_message": False, "add_generation_prompt": False})
    assert plain == f"<user><é></><assistant>{said.strip()}</>"


def test_transformers_goes_on_in_the_same_place() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for said in ("yo", "two\n\nlines: é", "a <b>"):
        messages = [MESSAGES[0], {"role": "assistant", "content": said}]
        theirs, _ = render_jinja_template([messages], chat_template=TURNS, continue_final_message=True)
        assert [ChatTemplate(TURNS, {}).render(messages, {"continue_final_message": True})] == theirs


def test_what_can_t_be_continued_is_refused() -> None:
    template, asked = ChatTemplate(TURNS, {}), {"continue_final_message": True}
    with pytest.raises(TextError, match="give add_generation_prompt=False"):
        template.render(MESSAGES, asked | {"add_generation_prompt": True})
    for messages in ([], [{"role": "assistant", "content": None}], [{"role": "assistant", "content": [{"text": "x"}]}]):
        with pytest.raises(TextError, match="final message whose content is a text"):
            template.render(messages, asked)
    with pytest.raises(TextError, match="leaves the final message out"):
        ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES, asked)
    assert asked == {"continue_final_message": True}
