"""Sequences that decode on together: what their plans say once, and what makes them be looked at one by one again.

The driver checks of every plan that what it says as a whole is what each of them has to do.
"""

from __future__ import annotations

import random

import pytest

from octavo_engine.scheduling.plan import Plan
from tests.scheduling.driver import EOS, Driver, random_draw

IN_FLIGHT = pytest.mark.parametrize("in_flight", [1, 2])


def steady(driver: Driver, steps: int = 3) -> list[Plan]:
    """Some steps, all of which only say that the sequences go on."""
    plans = [plan for plan in (driver.step() for _ in range(steps)) if plan is not None]
    assert len(plans) == steps
    assert all(plan.again is not None for plan in plans)
    assert all(plan.steps is plans[0].steps for plan in plans)
    return plans


def running(count: int, in_flight: int, **options: object) -> Driver:
    """So many sequences that decode."""
    driver = Driver(max_in_flight=in_flight, **options)  # type: ignore[arg-type]
    for key in range(count):
        driver.add(key, range(3 + key))
    for _ in range(3):
        driver.step()
    return driver


@IN_FLIGHT
def test_pages_are_all_that_a_step_is_told_of(in_flight: int) -> None:
    driver = running(3, in_flight, page_size=4)
    plans = steady(driver, 16)
    paged = [place for plan in plans if plan.again for place, _, _ in plan.again.paged]
    assert sorted(paged) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(len(plan.again.tokens) == (3 if in_flight == 1 else 0) for plan in plans if plan.again)
    driver.settle()
    driver.run()


@IN_FLIGHT
def test_several_enter_a_page_in_one_step(in_flight: int) -> None:
    driver = Driver(max_in_flight=in_flight, page_size=4, num_pages=200)
    for key in range(8):
        driver.add(key, [key + 1, 2])
    for _ in range(3):
        driver.step()
    sizes = {len(plan.again.paged) for plan in steady(driver, 12) if plan.again}
    assert sizes == {0, 8}
    assert len(driver.scheduler.tables.cache) >= 8
    driver.settle()
    driver.run()


@IN_FLIGHT
def test_a_page_that_was_computed_twice_is_told_of(in_flight: int) -> None:
    driver = Driver(max_in_flight=in_flight, page_size=4)
    for key in range(3):
        driver.add(key, [1, 2], seed=5)  # they draw the same
    for _ in range(3):
        driver.step()
    for _ in range(20):
        driver.step()
    shared = [len(set(pages)) for pages in zip(*(r.sequences[0].pages[:4] for r in driver.requests), strict=True)]
    assert shared == [1] * 4
    driver.settle()
    driver.run()


@IN_FLIGHT
def test_one_joins_and_one_leaves(in_flight: int) -> None:
    driver = running(3, in_flight)
    steady(driver)
    driver.add("new", [9, 9])
    joined = driver.step()
    assert joined is not None
    assert joined.again is not None
    assert [step.tokens for step in joined.more] == [[9, 9]]
    for _ in range(2):
        driver.step()
    assert {len(plan.steps) for plan in steady(driver)} == {4}
    driver.scheduler.abort(1)
    left = driver.step()
    assert left is not None
    assert left.again is None
    assert len(left.steps) == 3
    driver.step()
    assert {len(plan.steps) for plan in steady(driver)} == {3}
    driver.settle()
    driver.run()


@IN_FLIGHT
def test_a_prompt_is_computed_beside_them(in_flight: int) -> None:
    driver = Driver(max_in_flight=in_flight, max_num_batched_tokens=8, page_size=4)
    for key in range(3):
        driver.add(key, [80 + key])
    for _ in range(3):
        driver.step()
    driver.add("long", range(50, 68))
    plans = steady(driver, 4)
    assert [[len(step.tokens) for step in plan.more] for plan in plans] == [[5], [5], [5], [3]]
    assert [step.samplers for plan in plans for step in plan.more] == [[], [], [], [3]]
    assert [plan.num_tokens for plan in plans] == [8, 8, 8, 6]
    for _ in range(2):
        driver.step()
    assert {len(plan.steps) for plan in steady(driver)} == {4}
    driver.settle()
    driver.run()


@IN_FLIGHT
def test_one_ends_while_the_others_go_on(in_flight: int) -> None:
    """Its row of the step that is in flight is dropped, theirs are not."""
    last = {0: 8}
    driver = running(
        3, in_flight, draw=lambda seq: EOS if len(seq.output) == last.get(seq.request.key) else 1000 + len(seq.output)
    )
    steady(driver, 4)
    first, *others = (request.sequences[0] for request in driver.requests)
    while first.finish_reason is None:
        driver.step()
    assert first.output == [*range(1000, 1008), EOS]
    for _ in range(3):
        driver.step()
    assert {len(plan.steps) for plan in steady(driver)} == {2}
    driver.settle()
    assert [seq.output for seq in others] == [[1000 + i for i in range(len(seq.output))] for seq in others]
    driver.run()


@IN_FLIGHT
def test_the_last_tokens_are_looked_at_one_by_one(in_flight: int) -> None:
    """No row beyond max_tokens, for whom it comes first, and the others go on."""
    driver = Driver(max_in_flight=in_flight)
    driver.add(1, [1, 2], max_tokens=9)
    driver.add(2, [1, 2, 3], max_tokens=20)
    driver.run()
    short, long = (request.sequences[0] for request in driver.requests)
    assert (len(short.output), len(long.output)) == (9, 20)
    assert sum(step.slot == 0 for plan in driver.plans for step in plan.seqs) == 9
    assert sum(plan.again is not None for plan in driver.plans) > 10


def test_who_depends_on_its_output_is_never_ahead_of_it() -> None:
    driver = Driver(max_in_flight=2)
    driver.add(1, [1, 2, 3], max_tokens=8, presence_penalty=0.5)
    driver.add(2, [1, 2, 3], max_tokens=8, presence_penalty=0.5)
    driver.run()
    assert all(not plan.again or plan.again.tokens for plan in driver.plans)


@pytest.mark.parametrize("seed", range(6))
def test_a_step_that_failed_is_run_again(seed: int) -> None:
    """What a plan says as a whole is told apart, with the tokens that are known by then."""
    driver = running(4, 2, page_size=2, draw=random_draw(seed, 900))
    source = random.Random(seed)
    for _ in range(12):
        for _ in range(source.randrange(5)):
            driver.step()
        driver.run_again()
    driver.run()


@IN_FLIGHT
def test_where_pages_are_short_somebody_gives_way(in_flight: int) -> None:
    driver = Driver(max_in_flight=in_flight, num_pages=12, page_size=2, draw=random_draw(3, 900))
    for key in range(3):
        driver.add(key, [key + 1, 2], max_tokens=14)
    driver.run()
    assert driver.scheduler.counters.preemptions > 0
    assert any(plan.again for plan in driver.plans)
