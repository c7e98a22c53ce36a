"""How many tokens are guessed, by what it costs and brings; and that wrong guesses leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from octavo.options import Regex
from octavo_engine.scheduling.sequence import Sequence
from octavo_engine.scheduling.speculation import Speculation
from octavo_engine.scheduling.step_cost import StepCost
from tests.scheduling.driver import Driver, RandomGuesses


class Oracle:
    """Guesses what a driver's default draw will give, or never that."""

    def __init__(self, right: bool, limit: int = 6, max_batch: int = 4) -> None:
        self.limit, self.max_batch = limit, max_batch
        self.right = right

    def propose(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        return [[1000 + len(seq.output) if self.right else 7] * limit for seq, limit in wanted]


def driver(cost: Callable[[int], float], right: bool = True, **options: object) -> Driver:
    """Steps that take as long as `cost` says of their rows."""
    made = Driver(proposer=Oracle(right), num_pages=1000, **options)  # type: ignore[arg-type]
    assert made.scheduler.speculation is not None
    made.scheduler.measured = lambda plan, _: made.scheduler.speculation.cost.add(  # type: ignore[method-assign, union-attr]
        plan.num_tokens, cost(plan.num_tokens)
    )
    return made


def lengths(made: Driver, steps: int) -> list[int]:
    return [sum(step.drafts for step in plan.seqs) for plan in (made.step() for _ in range(steps)) if plan is not None]


def test_free_rows_are_all_used_once_the_cost_of_a_step_is_known() -> None:
    made = driver(lambda rows: 1.0)
    made.add(0, range(1, 9), max_tokens=200)
    assert lengths(made, 12) == [0, 0, *[6] * 10]  # the prompt, a step to measure


@pytest.mark.parametrize("right", [True, False])
def test_rows_that_cost_a_step_each_are_not(right: bool) -> None:
    made = driver(lambda rows: float(rows), right)
    made.add(0, range(1, 9), max_tokens=300)
    found = lengths(made, 60)
    assert sum(found) <= 12  # it took some to find out
    assert not any(found[20:])


def test_wrong_guesses_become_rare_and_are_tried_again() -> None:
    made = driver(lambda rows: 1 + 0.1 * rows, right=False)
    made.add(0, range(1, 9), max_tokens=2000)
    found = lengths(made, 600)
    tried = [i for i, count in enumerate(found) if count]
    assert 3 < len(tried) < 60
    assert tried[-1] > 300


def test_none_in_large_batches() -> None:
    made = driver(lambda rows: 1.0)
    for key in range(5):
        made.add(key, range(1, 9), max_tokens=30 if key else 60)
    found = lengths(made, 30)
    assert not any(found[:28])  # all five decode
    assert any(lengths(made, 20))  # one


@pytest.mark.parametrize("in_flight", [1, 2])
def test_large_batches_decode_on_together(in_flight: int) -> None:
    made = driver(lambda rows: 1.0, max_in_flight=in_flight)
    for key in range(5):
        made.add(key, range(9 * key, 9 * key + 8), max_tokens=200 if key else 40)
    for _ in range(8):
        made.step()
    plans = [made.step() for _ in range(15)]
    assert all(plan is not None and plan.again is not None for plan in plans)
    assert made.scheduler.in_flight == (in_flight == 2)
    while made.scheduler.num_running == 5:
        made.step()
    assert any(lengths(made, 60))
    made.settle()
    made.run()


def test_wrong_guesses_leave_no_page_and_nothing_in_the_cache() -> None:
    made = driver(lambda rows: 1.0, right=False, page_size=2)
    made.add(0, range(1, 9), max_tokens=40)
    for _ in range(30):
        made.step()
        stats = made.scheduler.stats()  # check() has compared the pages with the tokens computed
        assert stats["kv_pages_cached"] <= stats["kv_slots_used"] // 2
    made.run()


def test_a_budget_and_the_last_token_bound_it() -> None:
    made = driver(lambda rows: 1.0, max_num_batched_tokens=8)
    for key in range(3):
        made.add(key, [key + 1], max_tokens=9)
    made.run()  # the driver checks the plans
    assert max(plan.num_tokens for plan in made.plans) > 3


def test_step_cost() -> None:
    cost = StepCost()
    assert not cost.knows(1)
    cost.add(2, 1.0)
    assert (cost(1), cost(2), cost(4)) == (1.0, 1.0, pytest.approx(1.2))
    cost.add(6, 3.0)
    assert cost(4) == pytest.approx(2.0)
    cost.add(2, 100.0)
    assert cost(2) == pytest.approx(1.3)  # a disturbance counts as three times the usual, and little
    for _ in range(60):
        cost.add(2, 0.5)
    assert cost(2) == pytest.approx(0.5, rel=0.01)


def test_who_may_not_be_guessed_for() -> None:
    made = Driver(proposer=RandomGuesses(random.Random(1), 4))
    made.add("beams", [1, 2, 3], max_tokens=20, beam_width=2)
    made.add("held", [4, 5], max_tokens=20, logits_processors={"ban": None})
    made.add("shaped", [4, 6], max_tokens=20, structured=Regex("a+"))
    made.run()
    assert isinstance(made.scheduler.speculation, Speculation)
    assert made.scheduler.speculation.num_drafted == 0
