"""Random histories: whatever happens, each sequence sees its own tokens only, everything ends, nothing leaks."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo_engine.scheduling.scheduler import DoesNotFit, QueueFull
from octavo_engine.scheduling.sequence import Sequence
from tests.scheduling.device import REGIMES
from tests.scheduling.driver import Driver, RandomGuesses


def _weak_hash(parent: int | bytes, tokens: bytes) -> int:
    return sum(tokens) % 2


class SchedulerMachine(RuleBasedStateMachine):
    driver: Driver

    @initialize(
        num_pages=st.integers(3, 14),
        page_size=st.integers(1, 4),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 10),
        caching=st.booleans(),
        weak=st.booleans(),
        max_overtaken=st.integers(1, 3),
        max_queued_requests=st.integers(1, 6),
        max_queued_tokens=st.sampled_from([20, 1000]),
        watermark=st.sampled_from([0.0, 0.2]),
        max_in_flight=st.integers(1, 2),
        guessing=st.booleans(),
        regimes=st.sampled_from(REGIMES),
        seed=st.integers(0, 1 << 30),
    )
    def start(
        self,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        budget: int,
        caching: bool,
        weak: bool,
        guessing: bool,
        seed: int,
        **bounds: Any,
    ) -> None:
        self.random = random.Random(seed)
        self.keys = 0
        self.driver = Driver(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
            hash_page=_weak_hash if weak else None,
            draw=lambda seq: self.random.randrange(4),
            proposer=RandomGuesses(self.random, 4) if guessing else None,
            **bounds,
        )

    @rule(
        shared=st.integers(0, 10),
        own=st.lists(st.integers(0, 2), max_size=3),
        n=st.sampled_from([1, 1, 1, 2, 3, 5]),
        max_tokens=st.one_of(st.none(), st.integers(1, 8)),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        priority=st.integers(-1, 1),
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.5]),
        prompt_logprobs=st.sampled_from([None, None, 0, 2]),
        cache_salt=st.sampled_from([b"", b"", b"x"]),
        beam_width=st.sampled_from([None, None, 1, 2, 3, 5]),
    )
    def add(self, shared: int, own: list[int], max_tokens: int | None, min_tokens: int, **options: object) -> None:
        self.keys += 1
        prompt = [1, 2, 1, 1, 2, 2, 1, 2, 2, 1][:shared] + own
        min_tokens = min(min_tokens, max_tokens or min_tokens)
        total = len(prompt) + (max_tokens or 1)
        fits = bool(prompt) and total <= self.driver.config.cache_tokens
        scheduler, config = self.driver.scheduler, self.driver.config
        try:
            self.driver.add(self.keys, prompt, max_tokens=max_tokens, min_tokens=min_tokens, **options)
        except DoesNotFit:
            assert not fits
        except QueueFull:
            assert fits
            assert (
                scheduler.num_waiting >= config.max_queued_requests
                or scheduler.waiting.num_tokens + len(prompt) > config.max_queued_tokens
            )
        else:
            assert fits

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.driver.step()

    def _live(self) -> list[Sequence]:
        live = self.driver.scheduler.requests.values()
        return [seq for request in live for seq in request.sequences if seq.finish_reason is None]

    @precondition(lambda self: self.driver.scheduler.requests)
    @rule(pick=st.integers(0, 1 << 20))
    def abort(self, pick: int) -> None:
        live = self._live()
        request = live[pick % len(live)].request
        assert self.driver.scheduler.abort(request.key) is request
        assert self.driver.scheduler.abort(request.key) is None
        assert all(seq.finish_reason is not None for seq in request.sequences)

    @precondition(lambda self: self.driver.scheduler.requests)
    @rule(pick=st.integers(0, 1 << 20))
    def finish(self, pick: int) -> None:
        live = self._live()
        seq = live[pick % len(live)]
        self.driver.scheduler.finish(seq, "stop", "END")
        self.driver.scheduler.finish(seq, "abort")
        assert (seq.finish_reason, seq.stop_reason) == ("stop", "END")

    @precondition(lambda self: self.driver.scheduler.requests)
    @rule(picks=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=3), whole=st.booleans())
    def end_in_flight(self, picks: list[int], whole: bool) -> None:
        self._schedule()
        for pick in picks:
            live = self._live()
            if live and whole:
                self.driver.scheduler.abort(live[pick % len(live)].request.key)
            elif live:
                self.driver.scheduler.finish(live[pick % len(live)], "abort")
            self.driver.scheduler.check()
        self.driver.settle()

    def _schedule(self) -> None:
        """A step, after what is in flight where it has to wait for that."""
        if len(self.driver.flying) == self.driver.config.max_in_flight:
            self.driver.settle()
        if self.driver.schedule() is None:
            self.driver.settle()
            self.driver.schedule()

    @precondition(lambda self: self.driver.scheduler.requests)
    @rule()
    def fail_a_step(self) -> None:
        self.driver.settle()
        plan = self.driver.schedule()
        if plan is not None:
            for step in plan.seqs:
                self.driver.scheduler.abort(self.driver.scheduler.sequence_at(step.slot).request.key)
            self.driver.settle()

    @precondition(lambda self: self.driver.config.max_in_flight == 2)
    @rule(picks=st.lists(st.integers(0, 1 << 20), max_size=2))
    def run_again(self, picks: list[int]) -> None:
        """What is in flight runs twice, and some of it ends between."""
        self.driver.schedule()
        for pick in picks:
            live = self._live()
            if live:
                self.driver.scheduler.abort(live[pick % len(live)].request.key)
        self.driver.run_again()

    @invariant()
    def holds(self) -> None:
        self.driver.scheduler.check()
        stats = self.driver.scheduler.stats()
        assert 0 <= stats["kv_slots_used"] <= stats["kv_slots_allocated"]

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.run()
            for request in self.driver.requests:
                for seq in request.sequences:
                    assert len(seq.output) <= seq.max_output
                scored = self.driver.scored.get(request.key)
                if scored is not None and all(seq.finish_reason != "abort" for seq in request.sequences):
                    assert scored in (request.prompt[1:], request.prompt[1 : len(scored) + 1])


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
