"""Many whole runs from plain seeds: less clever than test_machine, but it reaches hundreds of steps a run."""

from __future__ import annotations

import random

import pytest

from octavo_engine.scheduling.scheduler import DoesNotFit
from tests.scheduling.device import REGIMES
from tests.scheduling.driver import Driver, RandomGuesses


@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_random_load_ends_and_leaves_nothing(block: int, max_in_flight: int) -> None:
    preemptions = copies = hits = guessed = 0
    for seed in range(100 * block, 100 * block + 100):
        driver = _load(random.Random(seed), max_in_flight)
        driver.run()
        stats = driver.scheduler.stats()
        preemptions += int(stats["num_preemptions"])
        guessed += int(stats.get("spec_decode_num_accepted_tokens", 0))
        hits += int(stats["prefix_cache_hits"])
        copies += sum(len(plan.copies) for plan in driver.plans)
        for request in driver.requests:
            if request.params.prompt_logprobs is not None:
                assert driver.scored[request.key] == request.prompt[1:]
    # The load must have been of the kind that this test is about.
    assert preemptions > 40
    assert copies > 20
    assert guessed > 5
    assert hits > 20


def _load(source: random.Random, max_in_flight: int) -> Driver:
    driver = Driver(
        num_pages=source.randint(3, 14),
        page_size=source.randint(1, 4),
        max_num_seqs=source.randint(1, 5),
        max_num_batched_tokens=source.randint(1, 10),
        enable_prefix_caching=source.random() < 0.7,
        hash_page=(lambda parent, tokens: sum(tokens) % 2) if source.random() < 0.2 else None,
        max_overtaken=source.randint(1, 3),
        watermark=source.choice([0.0, 0.2]),
        max_in_flight=max_in_flight,
        regimes=source.choice(REGIMES),
        draw=lambda seq: source.randrange(4),
        proposer=RandomGuesses(source, 4) if source.random() < 0.5 else None,
    )
    for key in range(source.randint(1, 8)):
        shared = [1, 2, 1, 1, 2, 2, 1, 2, 2, 1][: source.randint(0, 10)]
        try:
            driver.add(
                key,
                [*shared, source.randrange(3)],
                n=source.choice([1, 1, 1, 2, 3, 5]),
                max_tokens=source.choice([None, 1, 2, 4, 8]),
                ignore_eos=source.random() < 0.5,
                priority=source.randint(-1, 1),
                prompt_logprobs=source.choice([None, None, 0, 2]),
                cache_salt=source.choice([b"", b"x"]),
                beam_width=source.choice([None, None, None, 2, 4]),
            )
        except DoesNotFit:
            continue
        for _ in range(source.randrange(5)):
            driver.step()
    return driver
