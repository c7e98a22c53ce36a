"""Guessing ahead changes nothing, to the bit: tokens and logprobs, greedy and sampled, however badly it guesses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from octavo.options import SamplingParams
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.draft_model import DraftModel
from octavo_engine.execution.drafts import reject
from octavo_engine.execution.runner import Runner
from octavo_engine.execution.sampler import NothingAllowed
from octavo_engine.scheduling.ngram import NGramProposer
from octavo_engine.scheduling.plan import REJECTED, SeqStep
from octavo_engine.scheduling.sequence import Request, Sequence
from octavo_engine.scheduling.speculation import Proposer
from octavo_engine.scheduling.step_cost import StepCost
from tests.execution.conftest import loaded_model, loaded_ops
from tests.execution.driver import VOCAB
from tests.execution.test_with_scheduler import Engine, Outputs, Setup, requests

F32 = Setup("cpu", torch.float32, torch.float32)


class OneStepCosts(StepCost):
    """The same for any number of rows, so that guessing pays."""

    def knows(self, rows: int) -> bool:
        return True

    def __call__(self, rows: int) -> float:
        return 1e9


class Hindsight:
    """Guesses what the sequence drew in another run, now and then something else."""

    def __init__(self, outputs: Outputs, wrong: float) -> None:
        self.limit, self.max_batch = 5, 64
        self._outputs, self._wrong, self._random = outputs, wrong, random.Random(4)

    def propose(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._guess(seq, limit) for seq, limit in wanted]

    def _guess(self, seq: Sequence, limit: int) -> list[int]:
        known = self._outputs[seq.request.key, seq.index][0]  # type: ignore[index]
        drawn = known[len(seq.output) : len(seq.output) + limit]
        return [self._random.randrange(VOCAB) if self._random.random() < self._wrong else token for token in drawn]


def load() -> list[Request]:
    """Those of test_with_scheduler, and what looks back at the output in every way there is."""
    rng, made = random.Random(9), requests(10)
    for i in range(len(made), len(made) + 6):
        params = SamplingParams(
            n=rng.choice([1, 2]),
            temperature=rng.choice([0, 0.7]),
            max_tokens=40,
            min_tokens=rng.choice([0, 9]),
            presence_penalty=rng.choice([0, 1.5]),
            frequency_penalty=rng.choice([0, 0.5]),
            logit_bias={5: 3.0},
            allowed_token_ids=rng.choice([None, tuple(range(0, VOCAB, 2))]),
            stop_token_ids=(8, 9, 10),
            logprobs=1,
        )
        prompt = [rng.randrange(VOCAB) for _ in range(20)]
        words = [[a, b] for a in range(0, VOCAB, 3) for b in range(4, 20)]
        made.append(Request(i, prompt, params, frozenset(range(20, 24)), 7 + i, float(i), bad_words=words))
    return made


def run(engine: Engine, waiting: list[Request], rng: random.Random | None) -> Outputs:
    """One after the other, or at once."""
    if engine.scheduler.speculation is not None:
        engine.scheduler.speculation.cost = OneStepCosts()
    while waiting or engine.scheduler.has_work or engine.steps.in_flight:
        alone = rng is None and not engine.scheduler.has_work
        for _ in range(min(len(waiting), int(alone) if rng is None else rng.choice([1, 4]))):
            engine.scheduler.add(waiting.pop(0))
        engine.step()
    return engine.outputs


def same_model(setup: Setup, kind: type[Runner]) -> Callable[..., Proposer]:
    """The model itself as its draft model."""

    def make(**sizes: Any) -> Proposer:
        runner = kind(loaded_model(setup.ops, setup.dtype, setup.quantization), loaded_ops(setup.ops), **sizes)
        return DraftModel(runner, limit=4, max_batch=64, page_size=16, max_position=160, chunk=37)

    return make


def compare(setup: Setup, make: Callable[[Outputs], Callable[..., Proposer]], *, overlap: bool = False) -> float:
    """Returns the share of right guesses."""
    alone = run(Engine(setup, 200, 160, caching=False), load(), None)
    crowded = Engine(setup, 14, 37, caching=True, overlap=overlap, make_proposer=make(alone))
    assert run(crowded, load(), random.Random(1)) == alone
    stats = crowded.scheduler.stats()
    assert stats["kv_pages_free"] == 14
    assert stats["num_preemptions"] > 0
    return stats["spec_decode_num_accepted_tokens"] / stats["spec_decode_num_draft_tokens"]


@pytest.mark.parametrize("wrong", [0.0, 0.25])
@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_drawn_behind_guesses_is_what_is_drawn_alone(wrong: float, overlap: bool) -> None:
    rate = compare(F32, lambda alone: lambda **_: Hindsight(alone, wrong), overlap=overlap)
    assert rate == 1 if wrong == 0 else 0.3 < rate < 0.9


@pytest.mark.parametrize(
    "setup",
    [
        Setup("cpu", torch.bfloat16, torch.int8),
        Setup("cpu", torch.bfloat16, torch.bfloat16, "int4"),
        Setup("cpu", torch.bfloat16, torch.bfloat16, "int8:float"),
    ],
    ids=["int8-cache", "int4", "int8-float"],
)
def test_so_it_is_with_few_bits(setup: Setup) -> None:
    assert compare(setup, lambda alone: lambda **_: Hindsight(alone, 0.2)) > 0.3


def test_a_draft_model_that_is_the_model_is_always_right() -> None:
    """It draws with the same random numbers, though pages are shared, copied, given back and found again."""
    assert compare(F32, lambda alone: same_model(F32, Runner)) == 1


def test_a_draft_model_of_other_weights() -> None:
    other = Setup("cpu", torch.bfloat16, torch.bfloat16, "int4")
    assert 0.05 < compare(F32, lambda alone: same_model(other, Runner)) < 1


def test_a_draft_model_on_a_device_that_works_by_itself() -> None:
    assert compare(F32, lambda alone: same_model(F32, DeviceRunner), overlap=True) == 1


def test_a_draft_model_that_fails_gives_no_guesses(caplog: pytest.LogCaptureFixture) -> None:
    def make(**sizes: Any) -> Proposer:
        proposer = same_model(F32, Runner)(**sizes)
        proposer._runner.submit = None  # type: ignore[attr-defined]
        return proposer

    engine = Engine(F32, 64, 64, caching=True, make_proposer=make)
    expected = run(Engine(F32, 64, 64, caching=True), load()[:2], None)
    assert run(engine, load()[:2], None) == expected
    assert "the draft model failed" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "guesses"),
    [
        ([1, 2, 3, 4, 9, 9, 1, 2], [3, 4, 9, 9]),
        ([1, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2, 8]),  # the latest place; behind the end it repeats
        ([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2], [7, 6, 1, 2]),  # the longest first
        ([256, 1, 0, 1], []),  # a token's bytes within others'
        ([4, 4, 4], [4, 4, 4, 4]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_prompt_lookup(prompt: list[int], guesses: list[int]) -> None:
    engine = Engine(F32, 64, 64, caching=True, make_proposer=lambda **_: NGramProposer(4, 2, 3, 8))
    engine.scheduler.add(Request(0, prompt, SamplingParams(), frozenset(), 0, 0.0))
    engine.scheduler.schedule()
    seq = engine.scheduler.sequence_at(0)
    assert engine.scheduler.speculation is not None
    assert NGramProposer(4, 2, 3, 8).propose([(seq, 4)]) == [guesses]
    seq.output.append(prompt[0])
    NGramProposer(4, 2, 3, 8).propose([(seq, 4)])
    assert bytes(seq.guesses.history) == seq.token_bytes(0, seq.num_tokens)  # type: ignore[union-attr]


def test_what_stands() -> None:
    steps = [SeqStep(0, 3, [1, 5, 6], 0, [], [0], drafts=2), SeqStep(1, 3, [1], 0, [], [1])]
    assert reject(steps, [5, 6, 7, 4], [None] * 4)[0] == [5, 6, 7, 4]
    assert reject(steps, [5, 9, 7, 4], [None] * 4)[0] == [5, 9, REJECTED, 4]
    assert reject(steps, [9, -1, 7, 4], [None] * 4)[0] == [9, REJECTED, REJECTED, 4]
    with pytest.raises(NothingAllowed, match="slot 0"):
        reject(steps, [5, -1, 7, 4], [None] * 4)
    with pytest.raises(NothingAllowed, match="slot 1"):
        reject(steps, [9, 6, 7, -1], [None] * 4)
