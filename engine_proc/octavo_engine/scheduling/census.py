"""Figures of a scheduler, and the proof that nothing leaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_engine.scheduling.scheduler import Scheduler

__all__ = ["Counters", "check", "stats"]


@dataclass(slots=True)
class Counters:
    """Since the start. cache_queries and cache_hits count tokens, of sequences that run for the first time."""

    preemptions: int = 0
    cache_queries: int = 0
    cache_hits: int = 0


def stats(scheduler: Scheduler) -> dict[str, float]:
    """num_requests_* count sequences. Pages shared by several sequences count once.

    kv_slots_allocated: token slots of the pages held; kv_slots_used: those of them that store a token; kv_waste_perc:
    the share that does not, 0 .. 1 like kv_cache_usage_perc. Exact between commit and schedule.
    """
    pool, size, counters = scheduler.pool, scheduler.config.page_size, scheduler.counters
    empty: dict[int, int] = {}
    for seq in filter(None, scheduler.running.slots):
        for index in range(seq.num_computed // size, len(seq.pages)):
            empty[seq.pages[index]] = size - max(0, seq.num_computed - index * size)
    allocated = pool.num_held * size
    used = allocated - sum(empty.values())
    speculation = scheduler.speculation
    guesses = (
        {}
        if speculation is None
        else {
            "spec_decode_num_draft_tokens": float(speculation.num_drafted),
            "spec_decode_num_accepted_tokens": float(speculation.num_accepted),
        }
    )
    return guesses | {
        "num_requests_running": float(scheduler.num_running),
        "num_requests_waiting": float(scheduler.num_waiting),
        "num_tokens_waiting": float(scheduler.waiting.num_tokens),
        "num_preemptions": float(counters.preemptions),
        "prefix_cache_queries": float(counters.cache_queries),
        "prefix_cache_hits": float(counters.cache_hits),
        "kv_cache_usage_perc": pool.num_held / pool.num_pages,
        "kv_pages_total": float(pool.num_pages),
        "kv_pages_free": float(pool.num_available),
        "kv_pages_cached": float(len(scheduler.tables.cache)),
        "kv_slots_allocated": float(allocated),
        "kv_slots_used": float(used),
        "kv_waste_perc": 1 - used / allocated if allocated else 0.0,
    }


def check(scheduler: Scheduler) -> None:
    """Raises AssertionError. Holds at any time outside of the scheduler's own methods."""
    config, running = scheduler.config, scheduler.running
    holders = [seq for seq in running.slots if seq is not None]
    scheduler.pool.check([*(seq.pages for seq in holders), *([page] for page in scheduler.flights.replaced())])
    scheduler.tables.cache.check()
    scheduler.waiting.check()
    running.check()
    if not scheduler.in_flight:
        assert set(holders) == {*running.decoding, *running.prefilling, *running.parked}, (
            "a slot is held by none that runs"
        )
        for seq in holders:
            assert len(seq.pages) == -(-seq.num_computed // config.page_size), "a page without tokens is held"
        if not holders:
            assert scheduler.pool.num_available == config.num_pages, "pages are held, but nothing runs"
    for seq in holders:
        assert seq.num_computed <= len(seq.pages) * config.page_size, "tokens computed beyond the pages"
        drawing = seq.num_computed - seq.num_tokens + 1  # tokens that plans in flight draw for it
        assert drawing <= len(scheduler.flights) or seq.finish_reason or seq in running.parked, (
            "nothing left to compute, but it runs"
        )
    for key, request in scheduler.requests.items():
        assert request.key == key
        live = [seq for seq in request.sequences if seq.finish_reason is None]
        assert len(live) == request.num_open > 0, "a request without open sequences is live"
        led = {follower for seq in request.sequences for follower in seq.followers}
        for seq in live:
            places = (seq.slot >= 0) + (seq in scheduler.waiting) + (seq in led)
            idle = seq.group is not None and (seq in seq.group.tops or seq not in seq.group.live)
            assert places == 1 or (idle and not places), f"a live sequence is in {places} places"
