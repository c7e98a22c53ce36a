from __future__ import annotations

import pytest

from octavo_engine.layers.rope import Regimes
from octavo_engine.scheduling.sequence import Sequence
from tests.scheduling.driver import EOS, Driver, random_draw


def _shape(driver: Driver) -> list[tuple[int, int]] | None:
    """The next step as (slot, tokens) a sequence."""
    plan = driver.step()
    return None if plan is None else [(seq.slot, len(seq.tokens)) for seq in plan.seqs]


# ---- the budget ----


def test_decode_goes_first_and_prompts_fill_the_budget_in_chunks() -> None:
    driver = Driver(max_num_batched_tokens=10)
    driver.add("a", range(1, 5), max_tokens=9)
    driver.add("b", range(1, 26), max_tokens=3)
    driver.add("c", range(1, 4), max_tokens=2)
    assert _shape(driver) == [(0, 4), (1, 6)]
    assert _shape(driver) == [(0, 1), (1, 9)]
    assert _shape(driver) == [(0, 1), (1, 9)]
    assert _shape(driver) == [(0, 1), (1, 1), (2, 3)]
    assert _shape(driver) == [(0, 1), (1, 1), (2, 1)]
    assert _shape(driver) == [(0, 1), (1, 1)]
    driver.run()


def test_a_chunk_samples_only_where_it_ends_the_prompt() -> None:
    driver = Driver(max_num_batched_tokens=4)
    driver.add(1, range(1, 10), max_tokens=2)
    driver.run()
    assert [seq.samplers for plan in driver.plans for seq in plan.seqs] == [[], [], [0], [0]]


def test_slots_are_bounded_and_an_ended_slot_is_told_once() -> None:
    driver = Driver(max_num_seqs=2)
    for key in range(5):
        driver.add(key, [1, 2], max_tokens=2)
    driver.run()
    assert [len(plan.starts) for plan in driver.plans] == [2, 0, 2, 0, 1, 0]
    assert [sorted(plan.ends) for plan in driver.plans] == [[], [], [0, 1], [], [0, 1], []]
    assert driver.schedule() is None  # the last one's end is told with the next start
    driver.add(5, [1], max_tokens=1)
    assert driver.step().ends == [driver.plans[-1].starts[0].slot]  # type: ignore[union-attr]


def test_a_step_smaller_than_the_number_of_sequences() -> None:
    driver = Driver(max_num_batched_tokens=1, max_num_seqs=4)
    for key in range(4):
        driver.add(key, [1, 2, 3], max_tokens=3)
    driver.run()
    assert all(len(plan.seqs) == 1 for plan in driver.plans)


# ---- the end of a sequence ----


@pytest.mark.parametrize(
    ("options", "drawn", "reason", "stop_reason", "length"),
    [
        ({}, [5, EOS], "stop", None, 2),
        ({"ignore_eos": True, "max_tokens": 3}, [5, EOS], "length", None, 3),
        ({"stop_token_ids": (5,)}, [6, 5], "stop", 5, 2),
        ({"stop_token_ids": (5, EOS)}, [EOS], "stop", None, 1),
        ({"stop_token_ids": (EOS,), "ignore_eos": True}, [EOS], "stop", EOS, 1),
        ({"min_tokens": 3, "stop_token_ids": (5,)}, [5, EOS, 6, EOS], "stop", None, 4),
        ({"max_tokens": 2}, [6, EOS], "stop", None, 2),
        ({"max_tokens": 2}, [6, 6], "length", None, 2),
        ({"max_tokens": 2, "min_tokens": 2}, [EOS, 7], "length", None, 2),
    ],
)
def test_how_a_sequence_ends(
    options: dict[str, object], drawn: list[int], reason: str, stop_reason: int | None, length: int
) -> None:
    tokens = iter([*drawn, 8, 8, 8])
    driver = Driver(draw=lambda seq: next(tokens))
    (seq,) = driver.add(1, [1, 2, 3], **options).sequences
    driver.run()
    assert (seq.finish_reason, seq.stop_reason, len(seq.output)) == (reason, stop_reason, length)
    start = driver.plans[0].starts[0]
    assert set(start.eos_ids) == {*start.params.stop_token_ids, *(() if start.params.ignore_eos else (EOS,))}


def test_finish_and_abort_free_slot_and_pages_at_once_and_are_idempotent() -> None:
    driver = Driver(max_num_seqs=2)
    running = driver.add("running", range(1, 9))
    waiting = driver.add("waiting", range(1, 9), n=2)
    driver.step()
    driver.scheduler.finish(running.sequences[0], "stop", "END")
    driver.scheduler.finish(running.sequences[0], "abort")
    assert (running.sequences[0].finish_reason, running.sequences[0].stop_reason) == ("stop", "END")
    assert driver.scheduler.abort("running") is None
    assert driver.scheduler.abort("waiting") is waiting
    assert [seq.finish_reason for seq in waiting.sequences] == ["abort", "abort"]
    assert driver.scheduler.abort("waiting") is None
    driver.scheduler.check()
    assert not driver.scheduler.has_work
    assert driver.scheduler.pool.num_available == 64


def test_a_token_drawn_for_a_sequence_that_ended_in_flight_is_dropped() -> None:
    driver = Driver()
    a, b = driver.add("a", [1, 2]), driver.add("b", [1, 2], max_tokens=3)
    plan = driver.schedule()
    assert plan is not None
    driver.scheduler.abort("a")
    assert driver.scheduler.sequence_at(plan.seqs[0].slot) is a.sequences[0]
    assert driver.commit(plan) == [None, b.sequences[0]]
    assert (len(a.sequences[0].output), len(b.sequences[0].output)) == (0, 1)
    driver.run()


def test_plans_are_committed_in_turn() -> None:
    driver = Driver()
    driver.add(1, [1, 2])
    plan = driver.schedule()
    assert plan is not None
    with pytest.raises(RuntimeError, match=r"plan 0 was not committed; slots \[0\] are live"):
        driver.scheduler.schedule()
    with pytest.raises(ValueError, match="1 samplers, got 2 tokens"):
        driver.scheduler.commit(plan, [1, 2])
    driver.commit(plan)
    with pytest.raises(RuntimeError, match="plan 0 is not the one in flight"):
        driver.scheduler.commit(plan, [1])
    with pytest.raises(KeyError, match="slot 7 is free"):
        driver.scheduler.sequence_at(7)
    driver.scheduler.abort(1)


def test_a_failed_step_is_dropped_with_its_requests() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add("bad", [1, 2])
    good = driver.add("good", [1, 2], max_tokens=2)
    assert driver.schedule() is not None
    driver.scheduler.abort("bad")
    driver.run()
    assert len(good.sequences[0].output) == 2


# ---- pages run out ----


def test_the_latest_of_the_lowest_priority_gives_way_and_is_recomputed() -> None:
    driver = Driver(num_pages=6, page_size=4, enable_prefix_caching=False)
    first = driver.add("first", range(1, 8), max_tokens=10)
    later = driver.add("later", range(11, 18), max_tokens=10)
    urgent = driver.add("urgent", range(21, 28), max_tokens=10, priority=-1)
    driver.step()
    driver.step()
    driver.step()
    assert later.sequences[0].slot == -1
    assert min(first.sequences[0].slot, urgent.sequences[0].slot) >= 0
    assert len(later.sequences[0].output) > 0
    driver.run()
    restart = [start for plan in driver.plans for start in plan.starts if start.output]
    assert restart[-1].prompt == later.prompt
    assert all(len(request.sequences[0].output) == 10 for request in (first, later, urgent))
    assert driver.scheduler.stats()["num_preemptions"] >= 1


def test_a_preempted_sequence_finds_its_pages_again() -> None:
    driver = Driver(num_pages=8, page_size=4, watermark=0.0)
    driver.add("first", range(1, 8), max_tokens=12)
    later = driver.add("later", range(11, 22), max_tokens=12)
    computed = 0
    while driver.scheduler.has_work:
        plan = driver.step()
        assert plan is not None
        computed += plan.num_tokens
    driver.run()
    assert driver.scheduler.stats()["num_preemptions"] == 1
    assert len(later.sequences[0].output) == 12
    without_cache = 7 + 11 + 22
    assert computed - without_cache < 12  # not all of prompt and output again
    assert later.sequences[0].num_cached == 0  # what it found the second time is not the client's


@pytest.mark.parametrize("seed", range(5))
def test_the_first_of_the_highest_priority_is_never_held_up(seed: int) -> None:
    driver = Driver(num_pages=9, page_size=2, max_num_seqs=6, draw=random_draw(seed))
    first = driver.add("first", range(1, 7), max_tokens=11, ignore_eos=True)
    for key in range(8):
        driver.add(key, range(1, 7), max_tokens=11, ignore_eos=True)
    for step in range(11):
        driver.step()
        assert len(first.sequences[0].output) == step + 1
    driver.run()


# ---- prompt logprobs ----


@pytest.mark.parametrize("budget", [1, 3, 64])
def test_prompt_logprobs_come_once_a_token_whatever_happens(budget: int) -> None:
    driver = Driver(num_pages=8, page_size=2, max_num_batched_tokens=budget)
    other = driver.add("other", range(1, 4), max_tokens=12)
    asked = driver.add("asked", range(1, 9), max_tokens=5, prompt_logprobs=2, n=2)
    driver.run()
    assert driver.scored["asked"] == asked.prompt[1:]
    assert other.key not in driver.scored


# ---- n > 1 ----


def _pages(sequences: list[Sequence]) -> list[list[int]]:
    return [seq.pages for seq in sequences]


def test_choices_share_the_prompt_and_copy_on_write() -> None:
    driver = Driver(page_size=4)
    added = driver.add(1, range(1, 11), n=3, max_tokens=4)
    plan = driver.step()
    assert plan is not None
    assert [len(seq.tokens) for seq in plan.seqs] == [10]
    assert plan.seqs[0].samplers == [start.slot for start in plan.starts] == [0, 1, 2]
    first, second, third = _pages(added.sequences)
    assert first == second == third
    prompt, shared = first[:2], first[-1]
    assert driver.scheduler.pool.num_held == 3
    assert driver.scheduler.stats()["kv_slots_used"] == 10
    plan = driver.step()
    assert plan is not None
    assert [source for source, _ in plan.copies] == [shared, shared]  # the last owner writes in place
    tails = [pages[-1] for pages in _pages(added.sequences)]
    assert len(set(tails)) == 3
    assert shared in tails
    assert all(pages[:2] == prompt for pages in _pages(added.sequences))
    driver.run()
    assert [len(seq.output) for seq in added.sequences] == [4, 4, 4]


def test_a_prompt_that_fills_its_pages_needs_no_copy() -> None:
    driver = Driver(page_size=4)
    driver.add(1, range(1, 9), n=4, max_tokens=3)
    driver.run()
    assert not any(plan.copies for plan in driver.plans)


@pytest.mark.parametrize(("slots", "pages"), [(1, 64), (2, 64), (3, 64), (8, 4), (8, 5), (1, 4)])
def test_choices_that_find_no_slot_or_page_come_later(slots: int, pages: int) -> None:
    driver = Driver(max_num_seqs=slots, num_pages=pages, page_size=4)
    added = driver.add(1, range(1, 11), n=5, max_tokens=6)
    driver.run()
    assert [len(seq.output) for seq in added.sequences] == [6] * 5
    assert [seq.finish_reason for seq in added.sequences] == ["length"] * 5


def test_a_forked_choice_that_gave_way_can_end_while_it_waits() -> None:
    driver = Driver(num_pages=4, page_size=4)
    choices = driver.add(1, range(1, 8), n=2, max_tokens=9).sequences
    while choices[1].slot >= 0 or not choices[1].output:
        assert driver.step() is not None
    assert choices[1] in driver.scheduler.waiting
    driver.scheduler.finish(choices[1], "abort")
    driver.run()
    assert len(choices[0].output) == 9


def test_late_choices_start_from_the_cached_prompt_together() -> None:
    driver = Driver(max_num_seqs=2, page_size=4)
    driver.add(1, range(1, 11), n=4, max_tokens=3)
    driver.run()
    forks = [(seq.start, seq.samplers) for plan in driver.plans for seq in plan.seqs if len(seq.samplers) > 1]
    assert [start for start, _ in forks] == [0, 8]
    assert all(len(samplers) == 2 for _, samplers in forks)


@pytest.mark.parametrize("steps", [0, 1])
def test_the_next_choice_leads_when_the_first_ends_before_the_prompt_is_done(steps: int) -> None:
    driver = Driver(max_num_batched_tokens=4)
    added = driver.add(1, range(1, 11), n=3, max_tokens=2)
    for _ in range(steps):
        driver.step()
    driver.scheduler.finish(added.sequences[0], "abort")
    driver.scheduler.finish(added.sequences[1], "abort")
    driver.run()
    assert [len(seq.output) for seq in added.sequences] == [0, 0, 2]


# ---- order ----


def _order(driver: Driver) -> list[object]:
    """Keys by their first start."""
    order: list[object] = []
    while (plan := driver.schedule()) is not None:
        for start in plan.starts:
            key = driver.scheduler.sequence_at(start.slot).request.key
            if key not in order:
                order.append(key)
        driver.commit(plan)
    return order


def test_priority_then_arrival() -> None:
    driver = Driver(max_num_seqs=1)
    for key, priority in [("a", 0), ("b", 5), ("c", -1), ("d", 0), ("e", -1)]:
        driver.add(key, [1], max_tokens=1, priority=priority)
    assert _order(driver) == ["c", "e", "a", "d", "b"]


def test_overtaking_is_bounded() -> None:
    driver = Driver(max_num_seqs=1, max_overtaken=3)
    driver.add("low", [1], max_tokens=1, priority=9)
    driver.add("lower", [1], max_tokens=1, priority=10)
    for key in range(6):
        driver.add(key, [1], max_tokens=1)
    assert _order(driver) == [0, 1, 2, "low", "lower", 3, 4, 5]


def test_a_prompt_too_large_for_now_is_not_passed_by_smaller_ones() -> None:
    driver = Driver(num_pages=8, page_size=4, watermark=0.0)
    driver.add("running", range(1, 18), max_tokens=3)
    driver.add("large", range(31, 51), max_tokens=1)
    driver.add("small", [1], max_tokens=1)
    assert _order(driver) == ["running", "large", "small"]


# ---- figures ----


def test_stats_tell_what_is_stored_and_what_is_wasted() -> None:
    driver = Driver(num_pages=10, page_size=4, max_num_seqs=2)
    for key in range(3):
        driver.add(key, range(10 * key + 1, 10 * key + 7), max_tokens=5)
    driver.step()
    stats = driver.scheduler.stats()
    assert stats["num_requests_running"] == 2
    assert (stats["num_requests_waiting"], stats["num_tokens_waiting"]) == (1, 6)
    assert (stats["kv_pages_total"], stats["kv_pages_free"], stats["kv_cache_usage_perc"]) == (10, 6, 0.4)
    assert (stats["kv_slots_allocated"], stats["kv_slots_used"], stats["kv_waste_perc"]) == (16, 12, 0.25)
    driver.run()
    stats = driver.scheduler.stats()
    assert (stats["kv_slots_allocated"], stats["kv_waste_perc"], stats["kv_cache_usage_perc"]) == (0, 0, 0)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_sequence_that_outgrows_its_regime_is_computed_again(max_in_flight: int) -> None:
    driver = Driver(page_size=4, regimes=Regimes((8, 12, 16), 16), max_in_flight=max_in_flight)
    driver.add("short", range(100, 105), max_tokens=4)
    driver.add("grows", range(6), max_tokens=8)
    driver.run()
    grew = driver.requests[1].sequences[0]
    steps = [(step.regime, step.start, len(step.tokens)) for plan in driver.plans for step in plan.seqs]
    assert [step for step in steps if step[0] > 8] == [
        *[(12, 0, 9), (12, 9, 1), (12, 10, 1), (12, 11, 1)],  # from its ninth token on
        (16, 0, 13),
    ]
    assert [step for step in steps if step[1:] == (0, 5) or step[1:] == (0, 6)] == [(8, 0, 5), (8, 0, 6)]
    assert grew.output == list(range(1000, 1008))
    assert driver.scheduler.stats()["num_preemptions"] == 0


def test_pages_are_shared_within_a_regime() -> None:
    driver = Driver(page_size=4, regimes=Regimes((8, 16), 16))
    for key, length in enumerate((8, 9, 8, 10)):
        driver.add(key, range(length), max_tokens=1)
        driver.run()
    assert [request.sequences[0].num_cached for request in driver.requests] == [0, 0, 4, 8]


def test_where_the_prompt_chooses_the_regime_nothing_is_computed_again() -> None:
    driver = Driver(page_size=4, regimes=Regimes((8, 16), 16, by_prompt=True))
    driver.add("short", range(7), max_tokens=5)
    driver.add("long", range(9), max_tokens=5)
    driver.run()
    steps = [(step.regime, step.start, len(step.tokens)) for plan in driver.plans for step in plan.seqs]
    assert steps[:2] == [(8, 0, 7), (16, 0, 9)]
    assert sorted(steps[2:]) == [(8, 7 + i, 1) for i in range(4)] + [(16, 9 + i, 1) for i in range(4)]
