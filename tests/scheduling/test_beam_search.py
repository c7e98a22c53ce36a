"""Beam search by hand, and beams through a scheduler short of slots, pages and budget: always what the search finds."""

from __future__ import annotations

import itertools
import math

import pytest

from octavo_engine.scheduling.beam_search import BeamSearch
from tests.scheduling.driver import EOS, Driver, Scored, texts

A, B = 1, 2


def advance(search: BeamSearch, *tops: dict[int, float]) -> list[tuple[int, int]]:
    return search.advance([sorted(top.items(), key=lambda entry: -entry[1]) for top in tops])


def test_the_best_continuations_of_all_beams_go_on() -> None:
    search = BeamSearch(2, ends=frozenset([EOS]), max_tokens=9)
    assert advance(search, {A: -1.0, B: -2.0, EOS: -5.0}) == [(0, A), (0, B)]
    assert advance(search, {A: -4.0, B: -4.5, EOS: -9.0}, {A: -0.5, B: -0.75, EOS: -9.0}) == [(1, A), (1, B)]


def test_what_ends_is_scored_by_its_length() -> None:
    search = BeamSearch(2, ends=frozenset([EOS]), max_tokens=9, length_penalty=2.0, early_stopping="never")
    assert advance(search, {EOS: -1.0, A: -2.0, B: -3.0}) == [(0, A), (0, B)]
    assert advance(search, {EOS: -1.0, A: -2.0, B: -3.0}, {A: -5.0, B: -6.0, EOS: -7.0}) == [(0, A), (0, B)]
    assert [(text.total, text.score) for text in search.finished] == [(-3.0, -0.75), (-1.0, -1.0)]


def test_only_the_best_width_may_end() -> None:
    search = BeamSearch(1, ends=frozenset([EOS]), max_tokens=9)
    assert advance(search, {A: -1.0, EOS: -1.5}) == [(0, A)]
    assert not search.finished


@pytest.mark.parametrize(("early_stopping", "steps"), [(True, 2), (False, 3), ("never", 8)])
def test_when_it_ends(early_stopping: bool | str, steps: int) -> None:
    """After two steps two texts have ended, with -0.75 and -1. The best beam that runs has -0.35 a token then, -1.23
    after the third; what a text of eight tokens would make of that is -0.46."""
    search = BeamSearch(2, ends=frozenset([EOS]), max_tokens=8, early_stopping=early_stopping)
    advance(search, {A: -0.5, EOS: -1.0, B: -3.0})
    advance(search, {A: -0.2, EOS: -1.0, B: -3.0}, {A: -8.0, B: -9.0})
    for count in itertools.count(2):
        if search.done:
            break
        logprob = -3.0 if count == 2 else -0.01
        advance(search, {A: logprob, B: -9.0, EOS: -20.0}, {A: -8.0, B: -9.0, EOS: -20.0})
    assert count == steps


def test_ends_before_min_tokens_and_lengths_beyond_max_tokens() -> None:
    search = BeamSearch(1, ends=frozenset([EOS]), max_tokens=3, min_tokens=2)
    for _ in range(2):
        assert advance(search, {EOS: -0.1, A: -1.0, B: -2.0}) == [(0, A)]
    assert advance(search, {A: -1.0, EOS: -2.0}) == []
    assert search.done
    (text,) = search.finished
    assert ([step.token for step in text.steps], text.token, text.score) == ([A, A, A], None, -1.0)


def test_it_finds_the_best_of_all_texts_when_it_is_wide_enough() -> None:
    """Every text of 3 tokens out of 9, none of which ends it."""
    search = BeamSearch(9**2, ends=frozenset(), max_tokens=3)
    beams: list[list[int]] = [[]]
    while not search.done:
        beams = [[*beams[p], t] for p, t in search.advance([Scored.of(beam).top for beam in beams])]
    totals = {
        text: sum(dict(Scored.of(text[:i]).top)[token] for i, token in enumerate(text))
        for text in itertools.product(range(9), repeat=3)
    }
    best = sorted(totals, key=lambda text: -totals[text])
    assert texts(search)[:20] == [list(text) for text in best[:20]]
    assert math.isclose(search.finished[0].total, totals[best[0]])


@pytest.mark.parametrize("max_in_flight", [1, 2])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_num_batched_tokens": 2},
        {"max_num_seqs": 1},
        {"max_num_seqs": 3, "max_num_batched_tokens": 5},
        {"num_pages": 6},
    ],
    ids=["room", "budget", "one-slot", "three-slots", "pages"],
)
def test_beams_come_out_the_same_however_short_of_room(
    limits: dict[str, int], caching: bool, max_in_flight: int
) -> None:
    driver = Driver(**limits, enable_prefix_caching=caching, max_in_flight=max_in_flight)  # type: ignore[arg-type]
    for key in range(3):
        driver.add(key, range(1 + key, 9), max_tokens=12, beam_width=4)
    driver.add("neighbour", [1, 2, 3], max_tokens=8)
    driver.run()
    assert len(driver.found) == 3  # the driver compares each with a search of its own


def test_beams_share_pages_and_copy_the_last_one() -> None:
    driver = Driver(page_size=4)
    driver.add(0, range(1, 20), max_tokens=10, beam_width=4)  # 19 tokens: four full pages and one to copy
    plans = [driver.step(), driver.schedule()]
    assert plans[0] is not None
    assert plans[1] is not None
    assert [len(step.samplers) for step in plans[0].seqs] == [1]
    assert len(plans[1].seqs) == 4
    assert len(plans[1].copies) == 3
    assert driver.scheduler.pool.num_held == 4 + 4
    driver.settle()
    driver.run()
    assert driver.scheduler.stats()["num_preemptions"] == 0
    assert not any(plan.starts for plan in driver.plans[1:]), "nobody was recomputed"


def test_one_slot_is_enough() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add(0, [1, 2, 3], max_tokens=4, beam_width=3)
    driver.run()
    assert driver.scheduler.stats()["num_preemptions"] > 0


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_beams_end_together(steps: int) -> None:
    driver = Driver(max_num_seqs=2)
    made = driver.add(0, range(1, 9), max_tokens=12, beam_width=3)
    for _ in range(steps):
        driver.step()
    driver.scheduler.finish(made.sequences[steps % 3], "abort")
    assert {seq.finish_reason for seq in made.sequences} == {"abort"}
    driver.run()
    assert not driver.found
