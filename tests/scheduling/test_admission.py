from __future__ import annotations

import pytest

from octavo_engine.scheduling.scheduler import DoesNotFit, QueueFull
from octavo_engine.scheduling.sequence import Request
from tests.scheduling.driver import Driver, request


def test_what_never_fits_is_refused_with_the_knob() -> None:
    driver = Driver(num_pages=10, page_size=4, max_model_len=30)
    with pytest.raises(DoesNotFit, match=r"21 prompt.*max_tokens=10 make 31 .*max_model_len=30"):
        driver.add(1, range(21), max_tokens=10)
    with pytest.raises(DoesNotFit, match=r"30 prompt.*31 .*max_model_len=30"):
        driver.add(1, range(30), max_tokens=None)
    with pytest.raises(DoesNotFit, match="0 tokens"):
        driver.add(1, [])
    driver.add(1, range(20), max_tokens=10, ignore_eos=True)
    driver.run()
    small = Driver(num_pages=5, page_size=4, max_model_len=30)
    with pytest.raises(DoesNotFit, match=r"whole KV cache of 20 tokens \(5 pages of 4\).*kv_cache_memory"):
        small.add(1, range(15), max_tokens=6)
    small.add(1, range(15), max_tokens=5)
    small.run()
    assert [len(s.output) for s in small.requests[0].sequences] == [5]


@pytest.mark.parametrize(("num_pages", "max_model_len", "room"), [(100, 30, 25), (5, 30, 15)])
def test_without_max_tokens_it_goes_to_the_end(num_pages: int, max_model_len: int, room: int) -> None:
    driver = Driver(num_pages=num_pages, page_size=4, max_model_len=max_model_len)
    added = driver.add(1, range(5), max_tokens=None)
    driver.run()
    assert len(added.sequences[0].output) == room
    assert added.sequences[0].finish_reason == "length"


def test_the_queue_is_bounded_in_requests() -> None:
    driver = Driver(max_num_seqs=2, max_queued_requests=3)
    for key in range(5):  # two will find slots
        driver.add(key, [1], max_tokens=1)
    with pytest.raises(QueueFull, match=r"5 requests wait.*max_queued_requests=3"):
        driver.add(5, [1], max_tokens=1)
    with pytest.raises(DoesNotFit):  # the truth that trying again will not change comes first
        driver.add(5, [])
    driver.step()
    driver.add(5, [1], max_tokens=1)
    driver.run()


def test_the_queue_is_bounded_in_tokens() -> None:
    driver = Driver(max_num_seqs=1, max_queued_tokens=20)
    driver.add(0, range(15), max_tokens=1)
    driver.add(1, range(5), max_tokens=1)
    with pytest.raises(QueueFull, match=r"20 tokens wait, 1 more.*max_queued_tokens=20"):
        driver.add(2, [1], max_tokens=1)
    driver.run()
    driver.add(3, range(40), max_tokens=1)  # with nobody waiting it would never be easier
    driver.run()


def test_a_live_key_is_refused_and_free_again_afterwards() -> None:
    driver = Driver()
    driver.add("key", [1], max_tokens=1)
    with pytest.raises(ValueError, match="'key' is live"):
        driver.scheduler.add(request("key", [1]))
    driver.run()
    driver.add("key", [1], max_tokens=1)
    driver.run()


@pytest.mark.parametrize("token", [1 << 31, -(1 << 31) - 1])
def test_a_token_id_beyond_int32_is_no_token(token: int) -> None:
    with pytest.raises(OverflowError):
        request(1, [token])


def test_choices_draw_from_streams_of_their_own() -> None:
    def seeds(seed: int) -> list[int]:
        driver = Driver()
        added: Request = driver.add(1, [1], n=4, seed=seed, max_tokens=1)
        driver.run()
        starts = [start for plan in driver.plans for start in plan.starts]
        assert len(starts) == len(added.sequences)
        return [start.seed for start in starts]

    assert seeds(5)[0] == 5
    assert seeds(-5)[0] == -5
    assert len({*seeds(5), *seeds(6), *seeds(-5)}) == 12
    assert seeds(5) == seeds(5)
