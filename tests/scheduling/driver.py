"""A scheduler with a runner that stores, in place of keys and values, what they depend on: all tokens up to theirs.

A cache cell holds a number that stands for (cache_salt, tokens 0 .. its position). Every step checks that each
sequence's page table, as a runner would know it, leads to exactly its own tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

from octavo.options import SamplingParams
from octavo_engine.scheduling.plan import Plan, SeqStart
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.scheduling.sequence import Request, Sequence

EOS = 0


def request(
    key: object,
    prompt: Iterable[int],
    *,
    seed: int = 1,
    cache_salt: bytes = b"",
    eos: int = EOS,
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
    )


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
        self.scheduler = Scheduler(self.config, hash_page)
        self.draw = draw or (lambda seq: 1000 + len(seq.output))
        self.cells: dict[tuple[int, int], int] = {}
        self.tables: dict[int, list[int]] = {}  # by slot, for those that have started
        self.requests: list[Request] = []
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
        waiting = self._waiting()
        had_work, dropped = self.scheduler.has_work, self.scheduler.in_flight
        plan = self.scheduler.schedule()
        self.scheduler.check()
        assert (plan is not None) == had_work or (dropped and not self.scheduler.has_work)
        if plan is not None:
            self._count_overtaking(waiting, plan)
            self._run(plan)
            self.plans.append(plan)
        return plan

    def commit(self, plan: Plan) -> list[Sequence]:
        slots = [slot for seq in plan.seqs for slot in seq.samplers]
        drew = [self.scheduler.sequence_at(slot) for slot in slots]
        tokens = [self.draw(seq) for seq in drew]
        before = [(seq.finish_reason, seq.output.copy()) for seq in drew]
        got = self.scheduler.commit(plan, tokens)
        assert got == drew
        for seq, token, (ended, output) in zip(drew, tokens, before, strict=True):
            assert seq.output == (output if ended else [*output, token])
        self.scheduler.check()
        return got

    def step(self) -> Plan | None:
        plan = self.schedule()
        if plan is not None:
            self.commit(plan)
        return plan

    def run(self, max_steps: int = 5000) -> int:
        """Until all is done; then nothing may be left anywhere. Returns the number of steps."""
        steps = 0
        while self.step() is not None:
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

    # ---- the runner ----

    def _run(self, plan: Plan) -> None:
        self._apply_slots(plan)
        self._apply_copies(plan)
        assert len({seq.slot for seq in plan.seqs}) == len(plan.seqs), "a sequence runs twice in a step"
        assert 0 < plan.num_tokens <= self.config.max_num_batched_tokens
        for step in plan.seqs:
            table = self.tables[step.slot]
            assert step.page_offset <= len(table) or not step.pages, "a gap in the page table"
            table[step.page_offset : step.page_offset + len(step.pages)] = step.pages
        for step in plan.seqs:
            seq = self.scheduler.sequence_at(step.slot)
            stop = step.start + len(step.tokens)
            assert step.start == seq.num_computed
            assert step.tokens == seq.tokens(step.start, stop)
            assert step.samplers[:1] == ([step.slot] if stop == seq.num_tokens else [])
            for slot in step.samplers[1:]:
                assert self.scheduler.sequence_at(slot).request is seq.request
            self._score(seq, step.start, stop, step.prompt_logprobs, step.next_token)
            for position in range(step.start, stop):
                self._write(step.slot, seq, position)
        for step in plan.seqs:
            self._attend(step.slot, step.start + len(step.tokens))

    def _apply_slots(self, plan: Plan) -> None:
        assert len(set(plan.ends)) == len(plan.ends)
        for slot in plan.ends:
            del self.tables[slot]
        for start in plan.starts:
            assert start.slot not in self.tables, f"slot {start.slot} starts, but never ended"
            self.tables[start.slot] = []
            self._check_start(start, self.scheduler.sequence_at(start.slot))
        assert len(self.tables) <= self.config.max_num_seqs
        assert all(0 <= slot < self.config.max_num_seqs for slot in self.tables)

    @staticmethod
    def _check_start(start: SeqStart, seq: Sequence) -> None:
        assert start.prompt == seq.request.prompt
        assert start.output == seq.output
        assert start.output is not seq.output
        assert start.params is seq.request.params
        assert start.eos_ids == sorted(seq.stops)
        assert -(1 << 63) <= start.seed < 1 << 63

    def _apply_copies(self, plan: Plan) -> None:
        sources, targets = {s for s, _ in plan.copies}, [t for _, t in plan.copies]
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets), "the order of copies would matter"
        for source, target in plan.copies:
            for offset in range(self.config.page_size):
                self.cells.pop((target, offset), None)
                if (source, offset) in self.cells:
                    self.cells[target, offset] = self.cells[source, offset]

    def _write(self, slot: int, seq: Sequence, position: int) -> None:
        page, offset = self._cell(slot, position)
        owners = [s for s in filter(None, self.scheduler.slots) if page in s.pages]
        assert owners == [seq], f"page {page} is written by {seq}, held by {owners}"
        before = self.cells[self._cell(slot, position - 1)] if position else hash(seq.request.cache_salt)
        token = seq.tokens(position, position + 1)[0]
        self.cells[page, offset] = hash((before, token))

    def _attend(self, slot: int, stop: int) -> None:
        seq = self.scheduler.sequence_at(slot)
        value = hash(seq.request.cache_salt)
        for position, token in enumerate(seq.tokens(0, stop)):
            value = hash((value, token))
            assert self.cells[self._cell(slot, position)] == value, f"position {position} has other tokens"

    def _cell(self, slot: int, position: int) -> tuple[int, int]:
        return self.tables[slot][position // self.config.page_size], position % self.config.page_size

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
