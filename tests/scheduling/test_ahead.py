"""A step scheduled while the one before it runs: who takes part, who waits, and what is kept for the one in flight."""

from __future__ import annotations

import pytest

from octavo_engine.scheduling.plan import PENDING, Plan
from tests.scheduling.driver import EOS, Driver


def ahead(**options: object) -> Driver:
    return Driver(max_in_flight=2, **options)  # type: ignore[arg-type]


def scheduled(driver: Driver) -> Plan:
    plan = driver.schedule()
    assert plan is not None
    return plan


def test_the_next_step_takes_what_this_one_will_draw() -> None:
    driver = ahead()
    driver.add(1, [1, 2, 3])
    first = scheduled(driver)
    second = scheduled(driver)
    assert [(step.start, step.tokens) for step in second.seqs] == [(3, [PENDING])]
    driver.commit(first)
    third = scheduled(driver)
    assert [(step.start, step.tokens) for step in third.seqs] == [(4, [PENDING])]
    driver.settle()
    assert driver.requests[0].sequences[0].output == [1000, 1001, 1002]
    driver.run()


def test_chunks_of_a_prompt_follow_one_another() -> None:
    driver = ahead(max_num_batched_tokens=4)
    driver.add(1, range(10))
    first, second = scheduled(driver), scheduled(driver)
    assert [step.tokens for plan in (first, second) for step in plan.seqs] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    driver.run()


def test_no_row_is_wasted_on_a_length_limit() -> None:
    """max_tokens, and the end of the context."""
    for options, limit in (({"max_tokens": 3}, 3), ({}, 7)):
        driver = ahead(max_model_len=10)
        driver.add(1, [1, 2, 3], **options)
        driver.run()
        assert sum(len(plan.seqs) for plan in driver.plans) == limit


def test_the_row_after_an_end_is_dropped_and_its_pages_stay_until_it_has_run() -> None:
    draws = iter([7, EOS, 9])
    driver = ahead(page_size=1, draw=lambda seq: next(draws))
    (seq,) = driver.add(1, [1, 2]).sequences
    scheduled(driver)
    second = scheduled(driver)
    driver.commit(driver.flying[0][0].plan)
    third = scheduled(driver)
    assert driver.commit(second) == [seq]  # EOS: it has ended, with a row in flight
    assert (seq.finish_reason, seq.output) == ("stop", [7, EOS])
    assert len(seq.pages) == 4
    assert driver.scheduler.pool.num_held == 4
    assert driver.schedule() is None
    assert driver.commit(third) == [None]
    assert seq.output == [7, EOS]
    assert driver.scheduler.pool.num_held == 0


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"min_tokens": 4},
    ],
)
def test_who_depends_on_its_output_waits_for_the_commit(params: dict[str, float]) -> None:
    driver = ahead()
    driver.add(1, [1, 2, 3], max_tokens=4, **params)
    driver.add(2, [1, 2, 3], max_tokens=8)
    driver.run()
    slots = [[step.slot for step in plan.seqs] for plan in driver.plans]
    assert slots[:4] == [[0, 1], [1], [0, 1], [1]]


def test_min_tokens_are_waited_for_and_no_longer() -> None:
    driver = ahead()
    driver.add(1, [1, 2, 3], max_tokens=8, min_tokens=3)
    driver.run()
    tokens = [step.tokens for plan in driver.plans for step in plan.seqs]
    assert tokens == [[1, 2, 3], [1000], [1001], [1002], [PENDING], [PENDING], [PENDING], [PENDING]]


def test_choices_fork_when_their_prompt_is_committed() -> None:
    driver = ahead()
    driver.add(1, [1, 2, 3], n=3, max_tokens=4)
    first = scheduled(driver)
    assert driver.schedule() is None
    driver.commit(first)
    plan = scheduled(driver)
    assert [step.start for step in plan.seqs] == [3, 3, 3]
    assert len(plan.copies) == 2
    driver.run()


def test_pages_are_found_only_once_committed() -> None:
    driver = ahead(max_num_seqs=4)
    driver.add(1, range(9), max_tokens=4)
    scheduled(driver)
    driver.add(2, range(9), max_tokens=4)
    scheduled(driver)
    assert driver.scheduler.stats()["prefix_cache_hits"] == 0
    driver.commit(driver.flying[0][0].plan)
    driver.add(3, range(9), max_tokens=4)
    scheduled(driver)
    assert driver.scheduler.stats()["prefix_cache_hits"] == 8
    driver.run()


def test_a_page_replaced_by_its_like_stays_while_a_step_in_flight_may_read_it() -> None:
    driver = ahead(max_num_batched_tokens=100)
    driver.add(1, range(9), max_tokens=4)
    (b,) = driver.add(2, range(9), max_tokens=4).sequences
    first = scheduled(driver)
    own = b.pages[:2]
    scheduled(driver)
    driver.commit(first)
    assert b.pages[:2] == driver.requests[0].sequences[0].pages[:2] != own
    assert [driver.scheduler.pool.refs[page] for page in own] == [1, 1]
    driver.settle()
    assert [driver.scheduler.pool.refs[page] for page in own] == [0, 0]
    driver.run()


def test_who_lacks_a_page_waits_for_the_commit_before_anybody_gives_way() -> None:
    driver = ahead(num_pages=4, page_size=2, watermark=0.0)
    driver.add(1, [1, 2, 3], max_tokens=4)
    driver.add(2, [4, 5, 6], max_tokens=4)
    scheduled(driver)  # positions 0 .. 2
    second = scheduled(driver)  # position 3: the pages are full
    assert len(second.seqs) == 2
    driver.commit(driver.flying[0][0].plan)
    assert driver.schedule() is None
    assert driver.scheduler.stats()["num_preemptions"] == 0
    driver.commit(second)
    assert driver.schedule() is not None
    assert driver.scheduler.stats()["num_preemptions"] == 1
    driver.run()


def test_no_more_than_two() -> None:
    driver = ahead()
    driver.add(1, [1])
    first, second = scheduled(driver), scheduled(driver)
    with pytest.raises(RuntimeError, match="plan 0 was not committed"):
        driver.scheduler.schedule()
    with pytest.raises(RuntimeError, match="plan 1 is not the one in flight"):
        driver.scheduler.commit(second, [1])
    driver.commit(first)
    driver.run()


def test_plans_in_flight_can_be_run_again() -> None:
    driver = ahead(page_size=2)
    for key in range(3):
        driver.add(key, [key, 1, 2], max_tokens=5)
    first, second = scheduled(driver), scheduled(driver)
    driver.scheduler.abort(1)
    driver.run_again()
    assert [step.tokens for step in first.seqs] == [[0, 1, 2], [1, 1, 2], [2, 1, 2]]
    assert [step.tokens for step in second.seqs] == [[1000], [0], [1000]]  # the one that was aborted drew nothing
    assert driver.requests[0].sequences[0].output == [1000, 1001]
    driver.run()
