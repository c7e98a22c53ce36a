"""Law 6 through the runner: what a sequence draws does not depend on its neighbours, on chunks, on how its pages came
to be, on preemption. On the CPU kernels to the bit, logprobs included; plain torch (whose products are not
batch-invariant) shows that the runner's own part holds, its logprobs compared within rounding.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.options import SamplingParams
from octavo.wire import TokenLogprob
from octavo_engine.execution.runner import Runner, independent_copies
from octavo_engine.execution.sampler import NothingAllowed
from octavo_engine.ops import Ops
from octavo_engine.scheduling.plan import Plan, SeqStart, SeqStep
from tests.execution.conftest import loaded_model, loaded_ops
from tests.execution.deferred import deferred_runner
from tests.execution.driver import VOCAB, Driver, Sequence

LENGTH = 20  # tokens drawn
SETUPS: dict[str, tuple[str, torch.dtype, torch.dtype, Callable[..., Runner]]] = {  # ops, weights, cache, runner
    "reference-float32": ("reference", torch.float32, torch.float32, Runner),
    "cpu-float32": ("cpu", torch.float32, torch.float32, Runner),
    "cpu-bfloat16": ("cpu", torch.bfloat16, torch.bfloat16, Runner),
    "cpu-int8-cache": ("cpu", torch.bfloat16, torch.int8, Runner),
    "deferred": ("cpu", torch.float32, torch.float32, deferred_runner),
}
PARAMS = [
    SamplingParams(temperature=0, logprobs=2),
    SamplingParams(temperature=0.9, top_p=0.9, logprobs=0),
    SamplingParams(temperature=1.2, top_k=30, repetition_penalty=1.3, frequency_penalty=0.3, logprobs=3),
    SamplingParams(temperature=0.7, min_p=0.05, min_tokens=30, max_tokens=40, logprobs=1),
    SamplingParams(temperature=1.0, allowed_token_ids=tuple(range(0, VOCAB, 3)), logprobs=1),
]


def request_of(i: int) -> dict[str, Any]:
    rng = random.Random(i)
    return {
        "prompt": [rng.randrange(VOCAB) for _ in range((1, 7, 15, 16, 17, 33, 80)[i % 7])],
        "params": PARAMS[i % len(PARAMS)],
        "seed": rng.getrandbits(63),
        "eos_ids": [0, 3],
        "bad_words": [[5, 6]],
    }


class Lab:
    """Fresh drivers over one model, and what each request gives when it runs alone in whole chunks."""

    def __init__(self, name: str, dtype: torch.dtype, kv_dtype: torch.dtype, make: Callable[..., Runner]) -> None:
        self.make = make
        self.ops, self.exact = loaded_ops(name), name == "cpu"
        self.model, self.kv_dtype = loaded_model(name, dtype), kv_dtype
        self._alone: dict[tuple[int, int], Sequence] = {}

    def driver(self, **changes: Any) -> Driver:
        return Driver(self.model, self.ops, kv_dtype=self.kv_dtype, make=self.make, **changes)

    def alone(self, i: int, seed: int | None = None) -> Sequence:
        request = request_of(i)
        key = (i, request["seed"] if seed is None else seed)
        if key not in self._alone:
            driver = Driver(self.model, self.ops, kv_dtype=self.kv_dtype, max_num_seqs=1)
            self._alone[key] = driver.start(**{**request, "seed": key[1]})
            driver.finish([self._alone[key]], LENGTH)
        return self._alone[key]

    def check(self, sequence: Sequence, reference: Sequence, since: int = 0) -> None:
        assert sequence.output == reference.output
        self.same(sequence.logprobs, reference.logprobs[since:])

    def same(self, found: list[TokenLogprob | None], expected: list[TokenLogprob | None]) -> None:
        if self.exact:
            assert found == expected
            return
        for a, b in zip(found, expected, strict=True):
            assert a is not None
            assert b is not None
            assert (a.token_id, a.rank, len(a.top)) == (b.token_id, b.rank, len(b.top))
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.fixture(params=SETUPS, scope="module")
def lab(request: pytest.FixtureRequest) -> Lab:
    return Lab(*SETUPS[request.param])


def test_a_batch_of_64_that_come_and_go(lab: Lab) -> None:
    """64 of 21 different requests, so that some stand in the batch several times."""
    count = 64 if lab.exact else 12
    driver, rng = lab.driver(), random.Random(3)
    waiting = list(range(count))
    running: dict[int, Sequence] = {}
    done: dict[int, Sequence] = {}
    widest = 0
    while len(done) < count:
        for i in waiting[: rng.choice([0, 1, 30])]:
            running[i] = driver.start(**request_of(i % 21))
            waiting.remove(i)
        widest = max(widest, len(running))
        if running:
            order = rng.sample(list(running), len(running))
            driver.step([(running[i], rng.choice([16, 200])) for i in order])
        for i in [i for i, sequence in running.items() if len(sequence.output) == LENGTH]:
            done[i] = running.pop(i)
            driver.stop(done[i])
    assert widest == count
    for i, sequence in done.items():
        lab.check(sequence, lab.alone(i % 21))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks(lab: Lab, chunk: int) -> None:
    driver = lab.driver()
    sequences = [driver.start(**request_of(i)) for i in range(7)]
    driver.finish(sequences, LENGTH, chunk)
    for i, sequence in enumerate(sequences):
        lab.check(sequence, lab.alone(i))


def test_a_prefix_found_in_the_cache(lab: Lab) -> None:
    driver = lab.driver()
    first = [driver.start(**request_of(i)) for i in range(7)]
    driver.finish(first, 3)
    second = [driver.start(**request_of(i), cached_from=first[i]) for i in range(7)]
    assert max(sequence.computed for sequence in second) == 64
    driver.finish(second, LENGTH)
    driver.finish(first, LENGTH)
    for i, pair in enumerate(zip(first, second, strict=True)):
        for sequence in pair:
            lab.check(sequence, lab.alone(i))


@pytest.mark.parametrize("i", range(7))
def test_choices_fork_and_copy_on_write(lab: Lab, i: int) -> None:
    """Each choice is what a request alone with its seed would be; different choices differ."""
    driver, request = lab.driver(), request_of(i)
    first = request.pop("seed")
    seeds = [first, first + 1, first + 2]
    choices = [driver.start(**request, seed=seed) for seed in seeds]
    other = driver.start(**request_of(i + 1))
    while not choices[0].output:
        driver.step([(other, 10), (choices[0], 30)], {choices[0]: choices[1:]})
    driver.finish([choices[2], other, choices[0], choices[1]], LENGTH)
    for seed, choice in zip(seeds, choices, strict=True):
        lab.check(choice, lab.alone(i, seed))
    greedy = request["params"].temperature == 0
    assert len({tuple(choice.output) for choice in choices}) == (1 if greedy else 3)


@pytest.mark.parametrize("chunk", [5, 200])
def test_preempted_and_resumed(lab: Lab, chunk: int) -> None:
    """All pages and the slot are lost; the sequence comes back with its output and is computed again, in chunks."""
    driver = lab.driver(num_pages=64, max_num_seqs=8, seed=4)
    sequences = [driver.start(**request_of(i)) for i in range(7)]
    driver.finish(sequences, 6)
    for i in (1, 2, 4, 6):
        driver.stop(sequences[i])
        sequences[i] = driver.start(**request_of(i), output=sequences[i].output)
    driver.finish(sequences, LENGTH, chunk)
    for i, sequence in enumerate(sequences):
        lab.check(sequence, lab.alone(i), since=LENGTH - len(sequence.logprobs))


@pytest.mark.parametrize("chunk", [1, 7, 64, 200])
def test_prompt_logprobs(lab: Lab, chunk: int) -> None:
    """One entry a prompt token but the first, whatever the chunks, equal to those of drawing the prompt forced."""
    driver = lab.driver()
    params = SamplingParams(temperature=0, prompt_logprobs=2, logprobs=2)
    prompt = request_of(6)["prompt"]
    sequence, other = driver.start(prompt, params), driver.start(**request_of(5))
    driver.finish([other, sequence], 2, chunk)
    assert [entry.token_id for entry in sequence.prompt_logprobs] == prompt[1:]

    forced_driver = lab.driver()
    forced: list[TokenLogprob | None] = []
    for end in range(1, len(prompt)):
        only = SamplingParams(temperature=0, logprobs=2, allowed_token_ids=(prompt[end],))
        step = forced_driver.start(prompt[:end], only)
        forced_driver.finish([step], 1)
        forced += step.logprobs
        forced_driver.stop(step)
    lab.same(list(sequence.prompt_logprobs), forced)


class Failing:
    """Ops whose sample raises when told to."""

    def __init__(self, ops: Ops) -> None:
        self.ops, self.fail_at = ops, -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def sample(self, logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.fail_at -= 1
        if self.fail_at == 0:
            raise RuntimeError("the device hiccuped")
        return self.ops.sample(logits, *rest)


def test_a_failed_step_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when it failed in its second block of logits: nothing is counted twice."""
    monkeypatch.setattr("octavo_engine.execution.runner._LOGIT_BLOCK_BYTES", 16 * 4 * VOCAB)
    lab = Lab("reference", torch.float32, torch.float32, Runner)
    ops = Failing(lab.ops)
    driver = Driver(lab.model, ops, max_num_seqs=20)
    sequences = [driver.start(**request_of(i % 5)) for i in range(18)]
    submit: Callable[[Plan], Any] = driver.runner.submit
    failures = 0

    def retried(plan: Plan) -> Any:
        nonlocal failures
        ops.fail_at = 2
        try:
            return submit(plan)
        except RuntimeError:
            failures += 1
            ops.fail_at = -1
            return submit(plan)

    monkeypatch.setattr(driver.runner, "submit", retried)
    driver.finish(sequences, LENGTH)
    assert failures == LENGTH
    for i, sequence in enumerate(sequences):
        lab.check(sequence, lab.alone(i % 5))


def runner() -> Runner:
    return Runner(
        loaded_model("reference", torch.float32),
        loaded_ops("reference"),
        num_pages=4,
        page_size=16,
        max_num_seqs=2,
        max_model_len=32,
        kv_dtype=torch.float32,
    )


def test_a_slot_changes_hands_within_one_plan() -> None:
    greedy = SamplingParams(temperature=0)
    first = SeqStart(0, SamplingParams(allowed_token_ids=(9,)), 0, [1, 2], [])
    step = SeqStep(0, 0, [1, 2], 0, [3], [0])
    fresh, used = runner(), runner()
    assert used.collect(used.submit(Plan(0, [], [first], [], [step]))).tokens == [9]
    plan = Plan(1, [0], [SeqStart(0, greedy, 0, [1, 2], [])], [], [step])
    result = used.collect(used.submit(plan))
    assert result == fresh.collect(fresh.submit(plan))
    assert result.tokens != [9]
    assert result.logprobs == [None]
    assert result.prompt_logprobs == {}


def test_a_plan_may_only_end_start_or_copy() -> None:
    r = runner()
    result = r.collect(r.submit(Plan(0, [1], [SeqStart(0, SamplingParams(), 0, [1], [])], [(0, 1)], [])))
    assert (result.tokens, result.logprobs, result.prompt_logprobs) == ([], [], {})


def test_copies_come_before_the_steps_own_writes() -> None:
    r = runner()
    start = SeqStart(0, SamplingParams(temperature=0), 0, [1, 2], [])
    r.submit(Plan(0, [], [start], [], [SeqStep(0, 0, [1, 2], 0, [3], [0])]))
    before = r.cache.keys[:, 3].clone()
    r.submit(Plan(1, [], [], [(3, 2)], [SeqStep(0, 2, [7], 0, [2], [0])]))
    assert torch.equal(r.cache.keys[:, 3], before)
    assert torch.equal(r.cache.keys[:, 2, :, :, :2], before[:, :, :, :2])
    assert r.cache.keys[:, 2, :, :, 2].any()
    assert not before[:, :, :, 2].any()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda pair: pair[0] != pair[1])))
def test_copies_at_the_same_time_are_as_copies_in_turn(copies: list[tuple[int, int]]) -> None:
    in_turn, at_once = list(range(7)), list(range(7))
    for src, dst in copies:
        in_turn[dst] = in_turn[src]
    for run in independent_copies(copies):
        order = random.Random(len(run)).sample(run, len(run))
        for src, dst in order:
            at_once[dst] = at_once[src]
    assert at_once == in_turn


def test_forks_of_one_page_are_one_run() -> None:
    copies = [(3, page) for page in range(10, 40)]
    assert list(independent_copies(copies)) == [copies]


def test_a_step_run_again_does_not_copy_again() -> None:
    """Its first run may have written to a page that was copied."""
    r = runner()
    start = SeqStart(0, SamplingParams(temperature=0), 0, [1, 2], [])
    r.submit(Plan(0, [], [start], [], [SeqStep(0, 0, [1, 2], 0, [3], [0])]))
    plan = Plan(1, [], [], [(3, 2), (0, 3)], [SeqStep(0, 2, [7], 0, [2], [0])])
    r.submit(plan)
    once = r.cache.keys.clone()
    r.submit(plan)
    assert torch.equal(r.cache.keys, once)
    assert once[:, 2, :, :, :3].any()


def test_a_request_without_a_token_to_draw_raises() -> None:
    params = SamplingParams(allowed_token_ids=(9,), min_tokens=1)
    r = runner()
    with pytest.raises(NothingAllowed, match="slot 1"):
        r.submit(Plan(0, [], [SeqStart(1, params, 0, [1], [], [9])], [], [SeqStep(1, 0, [1], 0, [0], [1])]))
