from __future__ import annotations

from octavo_engine.scheduling.block_pool import BlockPool
from octavo_engine.scheduling.prefix_cache import PrefixCache
from tests.scheduling.driver import Driver


def _cached(driver: Driver, key: object, prompt: list[int], **options: object) -> int:
    """Prompt tokens that were found for a request that then runs to its end."""
    added = driver.add(key, prompt, **{"max_tokens": 2, **options})
    driver.run()
    return added.sequences[0].num_cached


def test_a_prefix_is_found_page_by_page_and_one_token_is_always_computed() -> None:
    driver = Driver(page_size=4)
    prompt = list(range(1, 13))
    assert _cached(driver, 1, prompt) == 0
    assert _cached(driver, 2, prompt) == 8  # the third page holds the last token, whose logits are needed
    assert _cached(driver, 3, [*prompt, 77]) == 12
    assert _cached(driver, 4, [*prompt[:7], 99, *prompt[8:]]) == 4
    assert _cached(driver, 5, prompt[1:]) == 0
    stats = driver.scheduler.stats()
    assert stats["prefix_cache_hits"] == 24
    assert stats["prefix_cache_queries"] == 12 + 12 + 13 + 12 + 11


def test_generated_tokens_are_found_in_the_next_turn() -> None:
    driver = Driver(page_size=4)
    first = driver.add(1, [1, 2, 3, 4, 5], max_tokens=9)
    driver.run()
    turn = [*first.prompt, *first.sequences[0].output, 6, 7]
    assert len(turn) == 16
    assert _cached(driver, 2, turn) == 12  # of 14 tokens 13 were computed: the last one drawn was never run


def test_salt_and_switch_keep_requests_apart() -> None:
    prompt = list(range(1, 13))
    driver = Driver(page_size=4)
    _cached(driver, 1, prompt, cache_salt=b"a")
    assert _cached(driver, 2, prompt, cache_salt=b"b") == 0
    assert _cached(driver, 3, prompt) == 0
    assert _cached(driver, 4, prompt, cache_salt=b"a") == 8
    off = Driver(page_size=4, enable_prefix_caching=False)
    assert [_cached(off, key, prompt) for key in (1, 2)] == [0, 0]
    assert off.scheduler.stats()["kv_pages_cached"] == 0


def test_a_page_is_not_found_before_it_was_computed() -> None:
    driver = Driver(page_size=4)
    prompt = list(range(1, 13))
    driver.add(1, prompt)
    plan = driver.schedule()
    assert plan is not None
    assert driver.scheduler.stats()["kv_pages_cached"] == 0
    driver.commit(plan)
    assert driver.scheduler.stats()["kv_pages_cached"] == 3
    driver.run()


def test_pages_of_a_sequence_that_ended_in_flight_are_not_found() -> None:
    driver = Driver(page_size=4)
    driver.add(1, range(1, 13))
    plan = driver.schedule()
    assert plan is not None
    driver.scheduler.abort(1)
    driver.commit(plan)
    assert driver.scheduler.stats()["kv_pages_cached"] == 0
    assert _cached(driver, 2, list(range(1, 13))) == 0


def test_the_page_that_a_decode_fills_is_not_found_when_it_ended_in_flight() -> None:
    driver = Driver(page_size=4)
    driver.add(1, range(1, 8))
    driver.step()
    plan = driver.schedule()
    assert plan is not None
    driver.scheduler.abort(1)
    driver.commit(plan)
    assert driver.scheduler.stats()["kv_pages_cached"] == 1


def test_what_follows_pages_that_are_not_found_is_not_found_either() -> None:
    driver = Driver(page_size=4)
    leader, follower = driver.add(1, range(1, 11), n=2, max_tokens=9).sequences
    plan = driver.schedule()
    assert plan is not None
    driver.scheduler.finish(leader, "abort")
    driver.commit(plan)
    driver.run()
    assert len(follower.output) == 9
    assert driver.scheduler.stats()["kv_pages_cached"] == 0
    assert _cached(driver, 2, [*follower.tokens(8, 16), 5]) == 0


def test_one_content_computed_twice_at_once_ends_in_one_page() -> None:
    driver = Driver(page_size=4)
    prompt = list(range(1, 13))
    a, b = driver.add(1, prompt, max_tokens=3), driver.add(2, prompt, max_tokens=3)
    driver.step()
    assert a.sequences[0].num_cached == b.sequences[0].num_cached == 0
    assert a.sequences[0].pages == b.sequences[0].pages
    assert driver.scheduler.pool.num_held == 3
    driver.run()


def test_colliding_hashes_never_give_a_wrong_page() -> None:
    """The driver proves at every step that each sequence sees its own tokens; here that hits still happen too."""
    driver = Driver(page_size=2, hash_page=lambda parent, tokens: 7)
    assert _cached(driver, 1, [1, 2, 3]) == 0
    assert _cached(driver, 2, [5, 6, 7]) == 0
    assert _cached(driver, 3, [1, 2, 9]) == 2
    assert _cached(driver, 4, [1, 2, 1, 2, 5]) == 2
    assert driver.scheduler.stats()["kv_pages_cached"] == 1


def test_tokens_and_parent_are_compared() -> None:
    pool = BlockPool(4)
    cache = PrefixCache(pool, lambda parent, tokens: 1)
    page = pool.allocate()
    entry = cache.store(b"salt", b"tokens", page)
    assert entry is not None
    assert cache.find(b"salt", b"tokens") is entry
    assert cache.find(b"salt", b"others") is None
    assert cache.find(b"", b"tokens") is None
    assert cache.find(entry, b"tokens") is None
    assert cache.store(b"salt", b"tokens", pool.allocate()) is entry
    assert cache.store(entry, b"tokens", pool.allocate()) is None
    cache.check()


def test_the_cache_gives_way_to_new_work_oldest_first() -> None:
    driver = Driver(num_pages=6, page_size=4)
    _cached(driver, 1, [1] * 9)
    _cached(driver, 2, [2] * 9)
    assert driver.scheduler.stats()["kv_pages_free"] == 6
    _cached(driver, 3, [3] * 13)  # takes the free pages and the older prefix, its end first
    assert _cached(driver, 2, [2] * 9) == 8
    assert _cached(driver, 1, [1] * 9) < 8


def test_with_prompt_logprobs_the_prompt_is_computed() -> None:
    driver = Driver(page_size=4)
    prompt = list(range(1, 13))
    _cached(driver, 1, prompt)
    assert _cached(driver, 2, prompt, prompt_logprobs=1) == 0
    assert driver.scored[2] == prompt[1:]
    assert _cached(driver, 3, prompt) == 8
