"""A request id given again: what still comes for the request that had it before does not touch the new one."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import wire
from octavo.options import Choice, SamplingParams
from octavo_engine.execution.runner import StepResult
from octavo_engine.scheduling.plan import Plan
from octavo_engine.text import Text
from tests.core.test_core import RUNNER, A, AheadRunner, ScriptedMailbox, generate, run, runner_kind, tokens

__all__ = ["runner_kind"]  # a fixture

Mail = list[tuple[bytes, Any]]
ABORT = (A, wire.Abort([1]))


def ends(mailbox: ScriptedMailbox) -> list[str]:
    """How the requests of id 1 ended, in order."""
    found = [m for m in mailbox.sent[A] if isinstance(m, wire.Finished | wire.Failed) and m.request_id == 1]
    return [end.code if isinstance(end, wire.Failed) else end.choices[0].finish_reason or "" for end in found]


def test_aborted_and_asked_again_in_one_batch() -> None:
    mail = run([[(A, generate(1, [50], max_tokens=3)), ABORT, (A, generate(1, [60], max_tokens=2))]])
    assert ends(mail) == ["abort", "length"]
    assert tokens(mail, A, 1) == [61, 62]


def test_asked_again_while_its_steps_run() -> None:
    def again(token: int) -> Mail:
        return [ABORT, (A, generate(1, [token], max_tokens=2))]

    mail = run([[(A, generate(1, [50], max_tokens=90))], [], [], again(100), again(200)])
    assert ends(mail) == ["abort", "abort", "length"]
    told = tokens(mail, A, 1)
    assert told[-2:] == [201, 202]
    assert told == sorted(told)


class Words(Text):
    """The prompt's first letter is its token; long prompts are tokenised in the worker thread."""

    has_tokenizer = True
    longest_token = 1 << 20

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(text[0])]


def words(letter: str, length: int) -> wire.Generate:
    return wire.Generate(1, SamplingParams(temperature=0, max_tokens=2), text=letter * length)


@pytest.mark.parametrize("lengths", [(10_000, 10_000), (10_000, 1), (1, 10_000)])
def test_while_a_prompt_is_tokenised(lengths: tuple[int, int]) -> None:
    """The tokens of the first prompt come when the second has its name."""
    first, second = lengths
    script: list[Mail] = [[(A, words("A", first)), ABORT, (A, words("a", second)), ABORT, (A, words("k", second))]]
    mail = run(script, text=Words(eos_token_ids=[2]))
    assert ends(mail) == ["abort", "abort", "length"]
    assert tokens(mail, A, 1) == [ord("l"), ord("m")]


@pytest.mark.parametrize("which", ["queue", "first_token", "total"])
def test_a_deadline_ends_only_who_set_it(which: str) -> None:
    first = generate(1, [50], max_tokens=90, **{f"{which}_timeout": 0.2})
    mail = run([[(A, first), ABORT, (A, generate(1, [60], max_tokens=80))]])
    assert ends(mail) == ["abort", "length"]
    assert tokens(mail, A, 1) == list(range(61, 141))


def test_a_grammar_is_told_to_who_waits_for_it() -> None:
    """Neither of two that are aborted while their grammars are compiled comes back with them."""
    forms = [generate(1, [50], max_tokens=2, structured=Choice(("a", "b"))), generate(1, [60], max_tokens=2)]
    mail = run([[(A, forms[0]), ABORT, (A, forms[0]), ABORT, (A, forms[1])]], text=Words(eos_token_ids=[2]))
    assert ends(mail) == ["abort", "abort", "length"]
    assert tokens(mail, A, 1) == [61, 62]


class ReadingRunner(AheadRunner):
    """Tells of each prompt its first token as a logprob, as a step does that was under way when the request ended."""

    def _run(self, plan: Plan, tokens: list[list[int]]) -> StepResult:
        result = super()._run(plan, tokens)
        for seq in plan.seqs:
            entry = wire.TokenLogprob(seq.tokens[0], 0.0, 1, ())
            result.prompt_logprobs[seq.slot] = [entry] * (len(seq.tokens) - 1)
        return result


def test_what_a_step_read_is_told_to_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNNER, "kind", ReadingRunner)
    params = SamplingParams(temperature=0, prompt_logprobs=0, max_tokens=1)
    old, new = (wire.Generate(1, params, token_ids=ids, task=wire.Score(0)) for ids in ([50] * 4, [60] * 8))
    mail = run([[(A, old)], [ABORT, (A, new)]])
    assert ends(mail) == ["abort", "stop"]
    done = mail.of(A, wire.Finished)[-1]
    assert done.prompt_logprobs is not None
    assert [entry.token_id for entry in done.prompt_logprobs] == [60] * 7
