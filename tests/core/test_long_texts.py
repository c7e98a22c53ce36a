"""Texts that no context holds are refused unread, and none waits behind one that is only tokenised."""

from __future__ import annotations

import threading

import pytest

from octavo import wire
from octavo.options import SamplingParams
from tests.core.test_core import A, generate, run, runner_kind, tokens
from tests.core.test_names import Words, words

__all__ = ["runner_kind"]  # a fixture


class Measured(Words):
    """Its longest token has 20 characters."""

    longest_token = 20

    def __init__(self) -> None:
        super().__init__(eos_token_ids=[2])
        self.read: list[int] = []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.read.append(len(text))
        return super().encode(text, add_special_tokens)


@pytest.mark.parametrize("length", [20 * 100 + 1, 10_000], ids=["at once", "in the worker thread"])
def test_more_characters_than_the_context_has_tokens_are_refused_unread(length: int) -> None:
    text = Measured()
    mail = run([[(A, words("a", length)), (A, generate(2, [60], max_tokens=2))]], text=text)
    (failed,) = mail.of(A, wire.Failed)
    assert (failed.request_id, failed.code) == (1, "prompt_too_long")
    told = f"{length} characters are at least {-(-length // 20)} tokens, more than max_model_len=100;"
    assert failed.message.startswith(told)
    assert text.read == []
    assert tokens(mail, A, 2) == [61, 62]


def test_what_may_still_fit_is_read() -> None:
    text = Measured()
    mail = run([[(A, words("a", 20 * 100))]], text=text)
    assert text.read == [20 * 100]
    assert tokens(mail, A, 1) == [98, 99]


class Held(Measured):
    """The long text of a Tokenize is done when the prompt has been."""

    longest_token = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.prompt_done = threading.Event()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if text[0] == "a":
            self.prompt_done.set()
        else:
            assert self.prompt_done.wait(20)
        return super().encode(text, add_special_tokens)


def test_a_prompt_does_not_wait_for_a_text_that_is_only_tokenised() -> None:
    text = Held()
    mail = run([[(A, wire.Tokenize(7, "t" * 100_000)), (A, words("a", 9_000))]], text=text)
    assert text.read == [9_000, 100_000]
    assert tokens(mail, A, 1) == [98, 99]
    (answer,) = mail.of(A, wire.Tokens)
    assert answer.error is None


class Stuck(Measured):
    """Its thread is at the first prompt until a short one comes."""

    longest_token = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if text[0] == "z":
            self.go.set()
        assert self.go.wait(20)
        return super().encode(text, add_special_tokens)


def test_nobody_waits_for_prompts_whose_requests_have_ended() -> None:
    text = Stuck()
    left = [wire.Generate(number, SamplingParams(), text="b" * 10_000) for number in range(3, 50)]
    told = [(A, wire.Abort([message.request_id for message in left])), (A, wire.StatsRequest(1))]
    short = wire.Generate(2, SamplingParams(temperature=0, max_tokens=2), text="z")
    mail = run([[(A, words("a", 9_000)), *((A, message) for message in left), *told, (A, short)]], text=text)
    assert sorted(text.read) == [1, 9_000]
    assert tokens(mail, A, 1) == [98, 99]
    assert len(mail.of(A, wire.Finished)) == len(left) + 2
    (stats,) = mail.of(A, wire.Stats)
    assert stats.values["num_prompts_tokenising"] == 1
