"""Thoughts told from answers: the same for any cut of the text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import AsyncClient
from octavo.openai.reasoning import REASONING, ReasoningParser, reasoning_of
from tests.openai.conftest import served
from tests.openai.test_tools import ASK, answering

THINK = REASONING["think"]


def parse(pieces: Iterable[str], inside: bool) -> tuple[str, str]:
    parser = ReasoningParser(THINK, inside)
    parts = [parser.feed(piece) for piece in pieces]
    parts.append(parser.finish())
    return "".join(thoughts for thoughts, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(
    ("text", "inside", "thoughts", "answer"),
    [
        ("<think>\nHm.\n\nSo.\n</think>\n\nYes.", False, "Hm.\n\nSo.", "Yes."),
        (" <think></think>Yes.", False, "", "Yes."),
        ("Hm.</think>Yes.", True, "Hm.", "Yes."),
        ("<think>Hm.</think>Yes.", True, "Hm.", "Yes."),
        ("Yes. <think>Hm.</think>", False, "", "Yes. <think>Hm.</think>"),
        ("Hm.</think>Yes.", False, "", "Hm.</think>Yes."),
        ("<think>Hm. </th", False, "Hm. </th", ""),
        ("<th", False, "", "<th"),
        ("", True, "", ""),
        ("  Yes", False, "", "  Yes"),
    ],
)
def test_thoughts(text: str, inside: bool, thoughts: str, answer: str) -> None:
    assert parse([text], inside) == parse(text, inside) == (thoughts, answer)


PARTS = st.sampled_from(["<think>", "</think>", "<think", "</thi", "nk>", " ", "\n", "a", "<"])


@settings(max_examples=200)
@given(st.lists(PARTS, max_size=8), st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_any_cut_gives_the_same(parts: list[str], cuts: list[int], inside: bool) -> None:
    text = "".join(parts)
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(at)]
    whole = parse([text], inside)
    assert parse(pieces, inside) == parse(text, inside) == whole
    assert "".join(whole).count("a") == text.count("a")


@pytest.mark.anyio
async def test_a_prompt_that_ends_in_the_mark_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSeek-R1's does: its answers begin with thoughts."""

    async def ends(self: AsyncClient, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return "<|assistant|><think>\n"

    async def ask() -> dict[str, str]:
        async with served(answering("Hm.</think>Yes."), chat_template="</think>") as (http, _):
            answer = await http.post("/v1/chat/completions", json=ASK)
        message: dict[str, str] = answer.json()["choices"][0]["message"]
        return message

    assert (await ask())["content"] == "Hm.</think>Yes."
    monkeypatch.setattr(AsyncClient, "detokenize", ends)
    message = await ask()
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    ("template", "name"),
    [("x <think></think>", "think"), ("[THINK] [/THINK]", "mistral"), ("tools", None), (None, None)],
)
def test_marks_are_seen_in_the_template(template: str | None, name: str | None) -> None:
    assert reasoning_of(template) == name
