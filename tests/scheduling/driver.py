"""A scheduler and a device (see device.py), driven by hand: one step after the other, or one ahead of the other.

With max_in_flight 2 the device runs a plan as late as it can: when it is committed, with the next one scheduled.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo.options import SamplingParams
from octavo_engine.scheduling.beam_search import BeamSearch
from octavo_engine.scheduling.plan import PENDING, REJECTED, Plan, SeqStart
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.scheduling.sequence import Request, Sequence
from octavo_engine.scheduling.speculation import Proposer
from tests.scheduling.device import Device, Work

EOS = 0


def request(
    key: object,
    prompt: Iterable[int],
    *,
    seed: int = 1,
    cache_salt: bytes = b"",
    eos: int = EOS,
    beam_width: int | None = None,
    **params: object,
) -> Request:
    return Request(
        key=key,
        prompt=list(prompt),
        params=SamplingParams(**params),  # type: ignore[arg-type]
        eos_token_ids=frozenset([eos]),
        seed=seed,
        arrival=0.0,
        cache_salt=cache_salt,
        search=None if beam_width is None else BeamSearch(beam_width, ends=frozenset([eos]), max_tokens=1),
    )


@dataclass
class Scored:
    """What beams draw: the best of a few tokens, by numbers that depend on what came before."""

    top: list[tuple[int, float]]

    @classmethod
    def of(cls, tokens: Iterable[int]) -> Scored:
        history = tuple(tokens)
        weights = [(-random.Random(hash((history, token))).expovariate(1), token) for token in range(9)]
        return cls([(token, logprob) for logprob, token in sorted(weights, reverse=True)])


def searched(request: Request) -> list[list[int]]:
    """What a beam search of its own finds, best first: no scheduler, no pages."""
    assert request.search is not None
    search = BeamSearch(request.search.width, ends=frozenset([EOS]), max_tokens=request.search.max_tokens)
    beams: list[list[int]] = [[]]
    while not search.done:
        tops = [Scored.of([*request.prompt, *beam]).top for beam in beams]
        beams = [[*beams[parent], token] for parent, token in search.advance(tops)]
    return texts(search)


def texts(search: BeamSearch) -> list[list[int]]:
    return [[step.token for step in text.steps] for text in search.finished]


class Driver:
    """Schedules, runs and commits; every method checks all it can.

    draw(sequence) gives the token that a sequence samples next; by default numbers that count up and never end it.
    """

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        max_model_len: int = 1 << 20,
        hash_page: Callable[[int | bytes, bytes], int] | None = None,
        proposer: Proposer | None = None,
        draw: Callable[[Sequence], int] | None = None,
        **config: object,
    ) -> None:
        self.config = SchedulerConfig(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            **config,  # type: ignore[arg-type]
        )
        self.scheduler = Scheduler(self.config, hash_page, proposer)
        self.draw = draw or (lambda seq: 1000 + len(seq.output))
        self.device = Device(self.config)
        self.flying: deque[tuple[Work, list[int] | None]] = deque()  # with what was drawn, if the device ran it
        self.requests: list[Request] = []
        self.found: list[Request] = []  # whose beam searches ended by themselves
        self.scored: dict[object, list[int]] = {}
        self.overtaken: Counter[Sequence] = Counter()
        self.plans: list[Plan] = []

    # ---- what a test does ----

    def add(self, key: object, prompt: Iterable[int], **options: object) -> Request:
        added = request(key, prompt, **options)  # type: ignore[arg-type]
        self.scheduler.add(added)
        self.requests.append(added)
        self.scheduler.check()
        return added

    def schedule(self) -> Plan | None:
        scheduler = self.scheduler
        waiting = self._waiting()
        had_work, in_flight = scheduler.has_work, scheduler.in_flight
        ahead = in_flight and self.config.max_in_flight > 1
        if in_flight and not ahead:
            self.flying.clear()  # it failed, and its sequences have ended
        plan = scheduler.schedule()
        scheduler.check()
        if plan is None:
            assert in_flight or not had_work
            return None
        self._count_overtaking(waiting, plan)
        work = Work(
            plan,
            [scheduler.sequence_at(step.slot) for step in plan.seqs],
            [scheduler.sequence_at(slot) for step in plan.seqs for slot in step.samplers],
        )
        self._inspect(work, ahead)
        ran = self.device.run(work, self.draw) if self.config.max_in_flight == 1 else None
        self.flying.append((work, ran))
        self.plans.append(plan)
        return plan

    def commit(self, plan: Plan) -> list[Sequence] | list[Sequence | None]:
        """The oldest."""
        work, tokens = self.flying.popleft()
        assert work.plan is plan
        if tokens is None:
            tokens = self.device.run(work, self.draw)
        steps = [step for step in plan.seqs for _ in step.samplers]
        drew = [seq for seq, step in zip(work.samplers, steps, strict=True) for _ in range(1 + step.drafts)]
        before = {seq: (seq.finish_reason, seq.output.copy()) for seq in drew}
        scored = [Scored.of(seq.tokens(0, seq.num_tokens)) if seq.group is not None else None for seq in drew]
        self.scheduler.measured(plan, 1 + 0.01 * plan.num_tokens)
        got = self.scheduler.commit(plan, tokens, scored)
        assert all(one in (None, seq) for one, seq in zip(got, drew, strict=True))
        for seq, (ended, output) in before.items():
            standing = [token for other, token in zip(drew, tokens, strict=True) if other is seq and token != REJECTED]
            kept = [token for one, token in zip(got, tokens, strict=True) if one is seq]
            assert kept == ([] if ended or seq.group else standing[: len(kept) or 1])
            assert len(kept) == len(standing) or seq.finish_reason or seq.group
            assert seq.group or seq.output == output + kept
        for request in self.scheduler.beams.take_found():
            assert all(seq.finish_reason for seq in request.sequences)
            assert request.search is not None
            assert texts(request.search) == searched(request)
            self.found.append(request)
        self.scheduler.check()
        return got

    def step(self) -> Plan | None:
        """Schedule, and commit what is due: the same plan, or the one before it where that is still in flight."""
        plan = self.schedule()
        if len(self.flying) == self.config.max_in_flight or (plan is None and self.flying):
            self.commit(self.flying[0][0].plan)
        return plan

    def settle(self) -> None:
        """Commit all that is in flight."""
        while self.flying:
            self.commit(self.flying[0][0].plan)

    def run_again(self) -> None:
        """A step fails after those in flight have run on what it did not draw: all are run again, one by one."""
        for work, _ in self.flying:
            self.device.run(work, lambda seq: 999, check=False)
        for work, _ in list(self.flying):
            self.scheduler.resolve(work.plan)
            assert all(PENDING not in step.tokens for step in work.plan.seqs)
            self.commit(work.plan)

    def run(self, max_steps: int = 5000) -> int:
        """Until all is done; then nothing may be left anywhere. Returns the number of steps."""
        steps = 0
        if len(self.flying) == 2:
            self.settle()
        while self.step() is not None or self.flying or self.scheduler.has_work:
            steps += 1
            assert steps < max_steps, "no end in sight"
        scheduler = self.scheduler
        assert not scheduler.requests
        assert scheduler.num_running == scheduler.num_waiting == scheduler.waiting.num_tokens == 0
        assert scheduler.pool.num_available == self.config.num_pages
        for done in self.requests:
            assert all(seq.finish_reason for seq in done.sequences)
            assert all(not seq.pages and seq.slot == -1 for seq in done.sequences)
        return steps

    # ---- what must hold of a plan ----

    def _inspect(self, work: Work, ahead: bool) -> None:
        plan = work.plan
        for start in plan.starts:
            self._check_start(start, self.scheduler.sequence_at(start.slot))
        assert len({step.slot for step in plan.seqs}) == len(plan.seqs), "a sequence runs twice in a step"
        assert 0 < plan.num_tokens <= self.config.max_num_batched_tokens
        for step, seq in zip(plan.seqs, work.sequences, strict=True):
            stop = step.start + len(step.tokens)
            assert seq.finish_reason is None
            known = stop - step.drafts
            assert known == seq.num_computed
            pending = step.tokens == [PENDING]
            if pending:
                assert ahead
                assert step.start == seq.num_tokens
                assert len(seq.output) + 1 < seq.max_output, "a wasted row: its length ends it before"
                assert len(seq.output) >= seq.known_from
                flying = [other for flown, _ in self.flying for other in flown.plan.seqs]
                assert not any(other.drafts for other in flying if other.slot == step.slot)
            else:
                assert step.tokens[: known - step.start] == seq.tokens(step.start, known)
            assert step.samplers[:1] == ([step.slot] if known == seq.num_tokens + pending else [])
            assert not step.drafts or len(seq.output) + step.drafts < seq.max_output, "guesses beyond the end"
            for slot in step.samplers[1:]:
                assert self.scheduler.sequence_at(slot).request is seq.request
            self._score(seq, step.start, stop, step.prompt_logprobs, step.next_token)
            for position in range(step.start, stop):
                page = seq.pages[position // self.config.page_size]
                owners = [s for s in filter(None, self.scheduler.running.slots) if page in s.pages]
                assert owners == [seq], f"page {page} is written by {seq}, held by {owners}"

    @staticmethod
    def _check_start(start: SeqStart, seq: Sequence) -> None:
        assert start.prompt == seq.request.prompt
        assert start.output == seq.output
        assert start.output is not seq.output
        assert start.params is seq.request.params
        assert start.eos_ids == sorted(seq.stops)
        assert -(1 << 63) <= start.seed < 1 << 63

    def _score(self, seq: Sequence, start: int, stop: int, wanted: int, next_token: int) -> None:
        prompt = seq.request.prompt
        if wanted < 0:
            assert next_token == -1
            return
        assert wanted == seq.request.params.prompt_logprobs
        targets = self.scored.setdefault(seq.request.key, [])
        assert len(targets) == start
        targets += prompt[start + 1 : stop + 1]
        assert next_token == (prompt[stop] if stop < len(prompt) else -1)

    def _waiting(self) -> list[Sequence]:
        return [s for r in self.requests for s in r.sequences if s in self.scheduler.waiting]

    def _count_overtaking(self, waiting: list[Sequence], plan: Plan) -> None:
        started = {self.scheduler.sequence_at(start.slot) for start in plan.starts}
        for seq in waiting:
            if seq not in started:
                later = (s for s in started if s in waiting and s.rank[1] > seq.rank[1])
                self.overtaken[seq] += sum(1 for _ in later)
                assert self.overtaken[seq] <= self.config.max_overtaken


def random_draw(seed: int, vocabulary: int = 3) -> Callable[[Sequence], int]:
    """Few different tokens, so that sequences often agree; EOS among them."""
    source = random.Random(seed)
    return lambda seq: source.randrange(vocabulary)


class RandomGuesses:
    """Guesses out of a few tokens, often none."""

    def __init__(self, source: random.Random, vocabulary: int, limit: int = 4, max_batch: int = 64) -> None:
        self.limit, self.max_batch = limit, max_batch
        self._source, self._vocabulary = source, vocabulary

    def propose(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        draw = self._source.randrange
        return [[draw(self._vocabulary) for _ in range(draw(limit + 1))] for _, limit in wanted]
