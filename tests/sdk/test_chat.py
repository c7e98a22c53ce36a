"""`octavo chat`: the conversation, its commands, and how markdown settles; no terminal needed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.chat import chat
from octavo.chat.commands import COMMANDS, Answer, Quit, Say, obey
from octavo.chat.conversation import Conversation
from octavo.chat.plain import joined
from octavo.chat.rich_screen import settled
from octavo.chat.screen import visible
from octavo.errors import EngineDead, InvalidOption
from octavo.options import SamplingParams
from octavo.testing import Reply, ScriptedEngine

SCRIPT = {"one": "first", "bad": Reply(fail="prompt_too_long", message="9000 tokens"), "dies": Reply(die=True)}


class Typed:
    """A screen whose user writes these lines and then leaves."""

    def __init__(self, *lines: str) -> None:
        self.lines, self.answers, self.told, self.failed = list(lines), [""], list[str](), list[str]()

    async def read(self) -> str | None:
        return self.lines.pop(0) if self.lines else None

    def echo(self, text: str) -> None: ...

    def begin(self) -> None:
        self.answers.append("")

    def add(self, text: str) -> None:
        self.answers[-1] += text

    def end(self) -> None: ...

    def tell(self, text: str) -> None:
        self.told.append(text)

    def fail(self, text: str) -> None:
        self.failed.append(text)


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str) -> tuple[ScriptedEngine, Typed]:
    engine, screen = ScriptedEngine(SCRIPT, default="anything"), Typed(*lines)
    monkeypatch.setattr("octavo.chat._screen", lambda: screen)

    async def main() -> None:
        async with engine.client() as client:
            await chat(client, None, "Be kind", SamplingParams(temperature=0))

    anyio.run(main)
    return engine, screen


def within(work: Callable[[Conversation], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ScriptedEngine(SCRIPT, default="anything").client() as client:
            await work(Conversation(client, SamplingParams(), "Be kind"))

    anyio.run(main)


def test_commands_change_what_the_next_request_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("one", "/temp 0.5", "/max 7", "/set top-k 5", "/set stop END", "/system Be brief", "two", "/undo",
             "/retry", "/reset", "three", "/quit", "never")  # fmt: skip
    engine, screen = talk(monkeypatch, *lines)
    asked = [[(turn.role, turn.content) for turn in request.messages or ()] for request in engine.requests]
    kind, brief = ("system", "Be kind"), ("system", "Be brief")
    assert asked == [
        [kind, ("user", "one")],
        [brief, ("user", "one"), ("assistant", "first"), ("user", "two")],
        [brief, ("user", "one")],
        [brief, ("user", "three")],
    ]
    params = engine.requests[-1].params
    assert (params.temperature, params.max_tokens, params.top_k, params.stop) == (0.5, 7, 5, ("END",))
    assert screen.answers[1:] == ["first", "anything", "first", "anything"]
    assert not screen.failed


def test_what_fails_is_told_and_was_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("bad", "/temp hot", "/temp -1", "/rety", "/undo", "/load /nowhere", "/set nonsense 1", "one")
    engine, screen = talk(monkeypatch, *lines)
    for text, expected in zip(
        screen.failed, ("9000", "hot", "-1", "/retry", "/undo", "/nowhere", "top_p"), strict=True
    ):
        assert expected in text
    assert [turn.content for turn in engine.requests[-1].messages or ()] == ["Be kind", "one"]
    with pytest.raises(EngineDead):
        talk(monkeypatch, "dies", "one")


def test_a_chat_is_saved_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"

    async def first(talk: Conversation) -> None:
        talk.say("one")
        talk.answered("first", 1)
        assert isinstance(await obey(talk, f"/save {file}"), Say)

    async def second(talk: Conversation) -> None:
        talk.system = ""
        await obey(talk, f"/load {file}")
        assert [turn.content for turn in talk.messages()] == ["Be kind", "one", "first"]
        with pytest.raises(InvalidOption, match="/save"):
            await obey(talk, f"/save {tmp_path}/no/such")
        file.write_text("[1, 2]")
        with pytest.raises(InvalidOption, match="a chat that /save wrote"):
            await obey(talk, f"/load {file}")
        assert len(talk.turns) == 2

    within(first)
    assert json.loads(file.read_text())["messages"][0] == {"role": "system", "content": "Be kind"}
    assert list(tmp_path.iterdir()) == [file]
    within(second)


def test_every_command_answers_something() -> None:
    async def work(talk: Conversation) -> None:
        for name in COMMANDS:
            talk.say("one")
            outcome = (
                await obey(talk, f"{name} none" if name == "/system" else name)
                if name
                not in (
                    "/save",
                    "/load",
                )
                else Say("x")
            )
            assert isinstance(outcome, {"/retry": Answer, "/quit": Quit}.get(name, Say))
            if isinstance(outcome, Say):
                assert outcome.text

    within(work)


def test_several_lines_make_one_message() -> None:
    assert joined(["one"]) == "one"
    assert joined(["one\\"]) is None
    assert joined(["one\\", "two"]) == "one\ntwo"
    assert joined(['"""one', "two\\"]) is None
    assert joined(['"""one', "two", '"""']) == "one\ntwo"


def test_a_model_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x9b1mc\x07\n\td\r") == "a[2Jb1mc\n\td"


BLOCKS = [
    "A paragraph.",
    "# Title",
    "- one\n- two",
    "```python\nx = 1\n\ny = 2\n```",
    "> quoted\n> more",
    "1. a\n\n   b",
]


@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6))
def test_what_has_settled_never_changes_and_cuts_no_block(blocks: list[str]) -> None:
    text = "\n\n".join(blocks)
    ends = {sum(len(block) + 2 for block in blocks[:i]) for i in range(len(blocks) + 1)}
    before = 0
    for length in range(len(text) + 1):
        now = settled(text[:length])
        assert now >= before
        assert now in ends
        before = now
    assert before == len(text) - len(blocks[-1])
