"""Who waits, who is told, what is kept: Grammars around a compiler that counts."""

from __future__ import annotations

import gc
import queue
from typing import Any

import pytest

from octavo.options import Choice, EngineOptions, Structured
from octavo_engine.structured import Grammars, InvalidGrammar, Matcher, grammars
from octavo_engine.text import Text


class Fake:
    """Stands for llguidance's matcher, and for the compiler that makes one when it is told to."""

    def __init__(self, text: Text) -> None:
        self.compiled: list[Structured] = []
        self.orders: queue.Queue[None] = queue.Queue()

    def compile(self, spec: Structured, timeout: float) -> Matcher:
        self.orders.get(timeout=20)
        self.compiled.append(spec)
        if spec == Choice(["bad"]):
            raise InvalidGrammar("structured: bad")
        if spec == Choice(["broken"]):
            raise ZeroDivisionError("inside")
        return Matcher(self)  # type: ignore[arg-type]

    def deep_copy(self) -> Fake:
        return self


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.woken: queue.Queue[None] = queue.Queue()
        self.fake = Fake(Text())
        monkeypatch.setattr(grammars, "Compiler", lambda text: self.fake)
        settings = EngineOptions(model="m", **options)
        self.grammars = Grammars(Text(eos_token_ids=[2]), settings, lambda: self.woken.put(None))

    def compile(self, count: int = 1) -> list[tuple[Any, Any]]:
        """Let so many compiles end, and what is told then."""
        told: list[tuple[Any, Any]] = []
        for _ in range(count):
            self.fake.orders.put(None)
        while len(told) < count:
            self.woken.get(timeout=20)
            told += self.grammars.ready()
        return told


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = Rig(monkeypatch, grammar_cache_size=2)
    yield rig
    rig.grammars.close()


A, B, C, D = (Choice([name]) for name in "abcd")


def test_one_compile_for_all_that_ask_for_the_same(rig: Rig) -> None:
    assert [rig.grammars.find(key, Choice(["a"]), f"request {key}") for key in (1, 2, 3)] == [None] * 3
    assert rig.grammars.num_pending == 3
    assert rig.grammars.is_pending(2)
    told = rig.compile()
    assert [request for request, _ in told] == ["request 1", "request 2", "request 3"]
    assert len({id(matcher) for _, matcher in told}) == 1
    assert rig.grammars.find(4, A, "request 4") is told[0][1]
    assert rig.fake.compiled == [A]
    assert rig.grammars.num_pending == 0


@pytest.mark.parametrize(
    ("spec", "words"), [(Choice(["bad"]), "bad"), (Choice(["broken"]), "ZeroDivisionError: inside")]
)
def test_an_error_is_told_and_not_kept(rig: Rig, spec: Structured, words: str) -> None:
    for attempt in (1, 2):
        assert rig.grammars.find(attempt, spec, attempt) is None
        ((request, error),) = rig.compile()
        assert request == attempt
        assert isinstance(error, InvalidGrammar)
        assert words in str(error)
    assert rig.grammars.find(3, A, 3) is None
    ((_, matcher),) = rig.compile()
    assert isinstance(matcher, Matcher)


def test_what_nobody_waits_for_is_not_begun(rig: Rig) -> None:
    for key, spec in enumerate([A, B, C]):  # two workers take the first two
        rig.grammars.find(key, spec, key)
    rig.grammars.cancel(2)
    rig.grammars.cancel(2)
    rig.grammars.cancel(99)
    told = rig.compile(2)
    assert sorted(request for request, _ in told) == [0, 1]
    rig.grammars.close()
    for worker in rig.grammars._workers:
        worker.join(20)  # the third was looked at
    assert rig.grammars.ready() == []
    assert sorted(map(repr, rig.fake.compiled)) == sorted(map(repr, [A, B]))


def test_a_worker_that_is_at_a_job_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the request that the job is for, though the engine thread was interrupted right behind the put."""

    class Prompt:
        @staticmethod
        def put(spec: Structured) -> None:
            rig.grammars._done.append((spec, rig.grammars._compile(spec, rig.fake)))  # type: ignore[arg-type]

    rig.fake.orders.put(None)
    with monkeypatch.context() as patch:
        patch.setattr(rig.grammars, "_short", Prompt)
        patch.setattr(rig.grammars, "_start_workers", lambda: None)
        assert rig.grammars.find(1, A, "asks") is None
    ((request, matcher),) = rig.grammars.ready()
    assert request == "asks"
    assert isinstance(matcher, Matcher)


def test_one_that_leaves_and_one_that_comes(rig: Rig) -> None:
    rig.grammars.find(1, A, 1)
    rig.grammars.find(2, B, 2)
    rig.grammars.find(3, C, 3)
    rig.grammars.cancel(3)
    rig.grammars.find(4, C, 4)
    told = rig.compile(3)
    assert sorted(request for request, _ in told) == [1, 2, 4]


def test_the_last_used_are_kept_and_all_that_are_held(rig: Rig) -> None:
    held = []
    for key, spec in enumerate([A, B, C]):
        assert rig.grammars.find(key, spec, key) is None
        ((_, matcher),) = rig.compile()
        held += [matcher] if spec is A else []
        del matcher
    gc.collect()
    assert rig.grammars.find(5, A, 5) is held[0]  # in use, and by that one of the last two: B goes
    assert rig.grammars.find(6, C, 6) is not None
    assert rig.grammars.find(7, B, 7) is None
    rig.compile()
    assert rig.fake.compiled == [A, B, C, B]


def test_what_is_kept_is_bounded_by_its_text_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_grammar_bytes=10)
    words = [Choice([letter * 10]) for letter in "abcdef"]
    for key, spec in enumerate(words):
        rig.grammars.find(key, spec, key)
        rig.compile()
    gc.collect()
    assert [rig.grammars.find(9, spec, 9) is not None for spec in reversed(words)] == [True] * 4 + [False] * 2


def test_too_long_a_text_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Rig(monkeypatch, max_grammar_bytes=3)
    with pytest.raises(InvalidGrammar, match=r"4 bytes of Choice; EngineOptions\.max_grammar_bytes=3"):
        small.grammars.find(1, Choice(["ab", "cd"]), 1)
    assert small.grammars.num_pending == 0


def test_compiled_twice_it_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, given up, asked for again: what a request that runs holds is what is found when it is begun anew."""
    rig = Rig(monkeypatch, grammar_cache_size=0)
    monkeypatch.setattr(rig.grammars, "_start_workers", lambda: None)
    rig.grammars.find(1, A, "first")
    rig.grammars.cancel(1)
    rig.grammars.find(2, A, "second")
    for _ in range(2):  # both compiles ended before the loop looked
        rig.grammars._done.append((A, Matcher(rig.fake)))  # type: ignore[arg-type]
    [(request, held)] = rig.grammars.ready()
    gc.collect()
    assert request == "second"
    assert isinstance(held, Matcher)
    rig.grammars.matcher(A)
