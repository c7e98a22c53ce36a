"""The scheduler: who runs in the next step, with which tokens, in which pages.

A step has a token budget. Running sequences decode first, one token each; then prompts are computed in chunks; then
waiting sequences are admitted. When a decode finds no page, the running sequence of the largest rank (lowest priority,
latest arrival) gives its pages back and waits to be recomputed, which the prefix cache makes cheap while its pages
survive. The smallest rank never gives way, so there is always progress.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable
from itertools import islice
from typing import NamedTuple

from octavo_engine.scheduling import census
from octavo_engine.scheduling.admission import DoesNotFit, QueueFull, SchedulerConfig, check_queue, output_room
from octavo_engine.scheduling.page_tables import PageTables
from octavo_engine.scheduling.plan import Plan, SeqStep
from octavo_engine.scheduling.prefix_cache import CachedPage
from octavo_engine.scheduling.sequence import FinishReason, Request, Sequence
from octavo_engine.scheduling.waiting import WaitingQueue

__all__ = ["DoesNotFit", "QueueFull", "Scheduler", "SchedulerConfig"]

_LOOK_AGAIN = 16  # steps after which a head that lacks pages is looked up in the prefix cache again


def _rank(seq: Sequence) -> tuple[int, int, int]:
    return seq.rank


class _Prefill(NamedTuple):
    seq: Sequence
    length: int  # tokens
    samplers: list[Sequence]  # empty, or the sequence itself and the choices that fork from it


class _Flight(NamedTuple):
    """A plan that was handed out and not yet committed."""

    plan: Plan
    decodes: list[Sequence]
    prefills: list[_Prefill]


class Scheduler:
    """One step: `plan = schedule()`, run it, `commit(plan, tokens)`. Not thread-safe.

    Steps follow one another for now: schedule() wants the last plan committed, unless all its sequences were finished
    meanwhile (so that a step that failed can be dropped). To schedule step N + 1 while N runs on a device would take:
    num_computed advanced by schedule() instead of commit(); a placeholder in SeqStep.tokens for the token that N draws
    (the runner puts in the slot's last draw); commit() dropping the draw of a sequence that ended a step before; and a
    queue of flights in place of one. Pages may still be given back at once, because the runner runs plans in order;
    and pages still become findable at commit.

    hash_page: for tests, see PrefixCache.
    """

    def __init__(self, config: SchedulerConfig, hash_page: Callable[[int | bytes, bytes], int] | None = None) -> None:
        self.config = config
        self.tables = PageTables(config.num_pages, config.page_size, config.enable_prefix_caching, hash_page)
        self.pool = self.tables.pool
        self.waiting = WaitingQueue(config.max_overtaken)
        self.requests: dict[Hashable, Request] = {}
        self.decoding: list[Sequence] = []  # both by rank
        self.prefilling: list[Sequence] = []
        self.slots: list[Sequence | None] = [None] * config.max_num_seqs
        self.free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self.counters = census.Counters()
        self._watermark = int(config.num_pages * config.watermark)
        self._ends: list[int] = []
        self._finished: list[Sequence] = []  # they still have slot and pages
        self._flight: _Flight | None = None
        self._arrivals = 0
        self._step = 0

    # ---- requests ----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises DoesNotFit when it can never run, QueueFull when as much waits as is allowed (what free slots will take
        at the next step doesn't count as waiting), ValueError when its key is in use.
        """
        room = output_room(request, self.config)
        check_queue(request, self.config, len(self.waiting), self.waiting.num_tokens, len(self.free_slots))
        if request.key in self.requests:
            raise ValueError(f"a request with key {request.key!r} is live")
        self._arrivals += 1
        for seq in request.sequences:
            seq.max_output = room
            seq.rank = (request.params.priority, self._arrivals, seq.index)
        self.requests[request.key] = request
        self._queue(request.sequences)

    def finish(self, sequence: Sequence, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End one sequence now, at any time; a no-op if it has ended. Its slot stands in the next plan's ends."""
        if sequence.finish_reason is not None:
            return
        self._end(sequence, reason, stop_reason)
        if sequence.slot >= 0:
            if self._flight is None:
                self._sweep()
        elif sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
        else:
            self.waiting.remove(sequence)
            self._promote(sequence)

    def abort(self, key: Hashable) -> Request | None:
        """End all sequences of a request; None if there is no live one of that key."""
        request = self.requests.get(key)
        if request is not None:
            for sequence in reversed(request.sequences):  # followers before the one they would replace
                self.finish(sequence, "abort")
        return request

    def sequence_at(self, slot: int) -> Sequence:
        """Who has the slot; for a plan's slots, from schedule() until commit(). Raises KeyError for a free slot."""
        sequence = self.slots[slot]
        if sequence is None:
            raise KeyError(f"slot {slot} is free")
        return sequence

    # ---- a step ------------------------------------------------------------------------------------------------

    def schedule(self) -> Plan | None:
        """The next step, or None when nothing runs or waits.

        Slots that became free stand in `ends` of the next plan that runs something, once; while nothing runs they are
        held back, since what the runner keeps of a slot is replaced at its next start anyway.
        Raises RuntimeError when the last plan's sequences live and it was not committed.
        """
        if self._flight is not None:
            self._drop_flight()
        plan = Plan(self._step, [], [], [], [])
        preempted = self.counters.preemptions
        self._decode(plan)
        decodes = self.decoding[: len(plan.seqs)]
        budget = self.config.max_num_batched_tokens - len(decodes)
        prefills = self._prefill(plan, budget)
        if self.waiting and preempted == self.counters.preemptions:
            self._admit(plan, budget - sum(prefill.length for prefill in prefills), prefills)
        if not plan.seqs:
            return None
        plan.ends, self._ends = self._ends, []
        self._flight = _Flight(plan, decodes, prefills)
        self._step += 1
        return plan

    def commit(self, plan: Plan, tokens: list[int]) -> list[Sequence]:
        """The plan ran and drew `tokens`, in the order of its samplers.

        Returns the sequences in that order, with the token appended and finish_reason set where it was the last. A
        sequence that was finished while the plan ran stands in the list too, but its token was dropped.
        """
        flight = self._flight
        if flight is None or flight.plan is not plan:
            raise RuntimeError(f"plan {plan.step} is not the one in flight")
        drew = flight.decodes + [seq for prefill in flight.prefills for seq in prefill.samplers]
        if len(tokens) != len(drew):
            raise ValueError(f"step {plan.step} has {len(drew)} samplers, got {len(tokens)} tokens")
        self._flight = None
        page_size = self.config.page_size
        for seq in flight.decodes:
            seq.num_computed = computed = seq.num_computed + 1
            if not computed % page_size and seq.finish_reason is None:
                self.tables.store(seq, computed - page_size)
        for prefill in flight.prefills:
            self._commit_prefill(prefill)
        for seq, token in zip(drew, tokens, strict=True):
            if seq.finish_reason is None:
                output = seq.output
                output.append(token)
                if token in seq.stops or len(output) >= seq.max_output:
                    self._end_by_token(seq, token)
        if self._finished:
            self._sweep()
        return drew

    def _drop_flight(self) -> None:
        assert self._flight is not None
        flight, self._flight = self._flight, None
        seqs = flight.decodes + [s for p in flight.prefills for s in (p.samplers or [p.seq])]
        alive = [seq.slot for seq in seqs if seq.finish_reason is None]
        if alive:
            self._flight = flight
            raise RuntimeError(f"plan {flight.plan.step} was not committed; slots {alive} are live")
        self._sweep()

    # ---- decode ------------------------------------------------------------------------------------------------

    def _decode(self, plan: Plan) -> None:
        steps = plan.seqs
        # Preemption pops this list's tail while it is walked: a sequence already in the plan is never popped.
        for seq in islice(self.decoding, self.config.max_num_batched_tokens):
            start = seq.num_computed
            if start < seq.room:
                steps.append(SeqStep(seq.slot, start, [seq.output[-1]], 0, [], seq.samplers))
            elif self._make_room(seq, plan):
                offset, seq.sent = seq.sent, len(seq.pages)
                new = seq.pages[offset:]
                steps.append(SeqStep(seq.slot, start, [seq.output[-1]], offset, new, seq.samplers))

    def _make_room(self, seq: Sequence, plan: Plan) -> bool:
        """See that its next token can be written. False: `seq` itself had to give way."""
        while self.tables.needs_page(seq):
            if self.pool.num_available:
                self.tables.add_page(seq, plan.copies)
                break
            victim = max((running[-1] for running in (self.decoding, self.prefilling) if running), key=_rank)
            self._preempt(victim)
            if victim is seq:
                return False
        seq.room = len(seq.pages) * self.config.page_size
        return True

    # ---- prefill and admission ---------------------------------------------------------------------------------

    def _prefill(self, plan: Plan, budget: int) -> list[_Prefill]:
        prefills: list[_Prefill] = []
        for seq in self.prefilling:
            if not budget:
                break
            length = self._chunk(seq, budget)
            if not length:
                break  # decodes took the pages that were there at its admission, and will give them back
            budget -= length
            prefills.append(self._compute(seq, length, plan))
        return prefills

    def _chunk(self, seq: Sequence, budget: int) -> int:
        """How many tokens of `seq` can be computed in this step."""
        start, request = seq.num_computed, seq.request
        stop = min(seq.num_tokens, start + budget, self.tables.capacity(seq))
        if request.wants_prompt_scored and start < request.prompt_scored:
            stop = min(stop, request.prompt_scored)  # recomputed: those were delivered already
        return max(0, stop - start)

    def _compute(self, seq: Sequence, length: int, plan: Plan) -> _Prefill:
        """Put the next `length` tokens of `seq` into the plan; there are pages for them."""
        request, start = seq.request, seq.num_computed
        stop = start + length
        self.tables.grow(seq, stop)
        offset, seq.sent = seq.sent, len(seq.pages)
        samplers = [seq, *self._fork(seq, plan)] if stop == seq.num_tokens else []
        slots = [sampler.slot for sampler in samplers]
        step = SeqStep(seq.slot, start, seq.tokens(start, stop), offset, seq.pages[offset:], slots)
        if request.wants_prompt_scored and start == request.prompt_scored:
            request.prompt_scored = stop
            assert request.params.prompt_logprobs is not None
            step.prompt_logprobs = request.params.prompt_logprobs
            step.next_token = request.prompt[stop] if stop < len(request.prompt) else -1
        plan.seqs.append(step)
        return _Prefill(seq, length, samplers)

    def _fork(self, seq: Sequence, plan: Plan) -> list[Sequence]:
        """Start the choices that can start with `seq`; the others wait. They get its pages once those are computed.

        Each will soon write to a page of its own, so no more start than there are pages.
        """
        followers, seq.followers = seq.followers, []
        count = min(len(followers), len(self.free_slots), self.pool.num_available)
        for follower in followers[:count]:
            self._start(follower, plan)
        self._queue(followers[count:])
        return followers[:count]

    def _start(self, seq: Sequence, plan: Plan) -> None:
        slot = self.free_slots.pop()
        self.slots[slot] = seq
        plan.starts.append(seq.begin(slot))

    def _admit(self, plan: Plan, budget: int, prefills: list[_Prefill]) -> None:
        while budget and self.waiting and self.free_slots:
            seq = self.waiting.head()
            found = self._find_room(seq)
            if found is None:
                return
            self.waiting.admit(seq)
            self.tables.begin(seq, found)
            if not seq.started:
                seq.num_cached = seq.num_computed
                if self.config.enable_prefix_caching:
                    self.counters.cache_queries += seq.num_tokens
                    self.counters.cache_hits += seq.num_computed
            self._start(seq, plan)
            insort(self.prefilling, seq, key=_rank)
            length = self._chunk(seq, budget)
            budget -= length
            prefills.append(self._compute(seq, length, plan))

    def _find_room(self, seq: Sequence) -> list[CachedPage] | None:
        """Its cached prefix, if there are pages for the rest besides what running prompts will still need."""
        tables = self.tables
        promised = sum(tables.num_pages(s.num_tokens) - len(s.pages) for s in self.prefilling)
        available = self.pool.num_available - promised - self._watermark
        busy = bool(self.decoding or self.prefilling)
        cost, look_at = seq.cost
        if busy and cost > available and self._step < look_at:
            return None
        found = tables.find(seq)
        cost = tables.cost(seq, found)
        if busy and cost > available:
            seq.cost = (cost, self._step + _LOOK_AGAIN)
            return None
        return found

    def _commit_prefill(self, prefill: _Prefill) -> None:
        seq, length, samplers = prefill
        start = seq.num_computed
        seq.num_computed += length
        if seq.finish_reason is None:
            self.tables.store(seq, start)
        else:
            seq.node = None  # perhaps it ended because the model failed on it: what it wrote is not for others
        if not samplers:
            return
        self.prefilling.remove(seq)
        insort(self.decoding, seq, key=_rank)
        for follower in samplers[1:]:
            self.tables.share(seq, follower)
            follower.num_cached = seq.num_cached
            insort(self.decoding, follower, key=_rank)

    # ---- ends --------------------------------------------------------------------------------------------------

    def _end_by_token(self, seq: Sequence, token: int) -> None:
        """End `seq` if `token`, just appended, is its last."""
        params, drawn = seq.request.params, len(seq.output)
        if token in seq.stops and drawn >= params.min_tokens:
            is_eos = token in seq.request.eos_token_ids and not params.ignore_eos
            self._end(seq, "stop", None if is_eos else token)
        elif drawn >= seq.max_output:
            self._end(seq, "length", None)

    def _end(self, seq: Sequence, reason: FinishReason, stop_reason: str | int | None) -> None:
        """Slot and pages are taken by the next _sweep."""
        seq.finish_reason, seq.stop_reason = reason, stop_reason
        seq.request.num_open -= 1
        if not seq.request.num_open:
            del self.requests[seq.request.key]
        if seq.slot >= 0:
            self._finished.append(seq)

    def _sweep(self) -> None:
        """Take slot and pages from all that have ended."""
        self.decoding = [seq for seq in self.decoding if seq.finish_reason is None]
        self.prefilling = [seq for seq in self.prefilling if seq.finish_reason is None]
        finished, self._finished = self._finished, []
        for seq in finished:
            self._vacate(seq)
            self._promote(seq)

    def _preempt(self, victim: Sequence) -> None:
        """`victim`, the tail of its list, waits again, to be recomputed."""
        running = self.decoding if self.decoding and self.decoding[-1] is victim else self.prefilling
        running.pop()
        self._vacate(victim)
        self.counters.preemptions += 1
        self.waiting.push(victim)

    def _vacate(self, seq: Sequence) -> None:
        self.tables.release(seq)
        self._ends.append(seq.slot)
        self.slots[seq.slot] = None
        self.free_slots.append(seq.slot)
        seq.slot = -1

    def _promote(self, leader: Sequence) -> None:
        """`leader` ended before the choices behind it could start: the next of them leads."""
        followers, leader.followers = leader.followers, []
        self._queue(followers)

    def _queue(self, choices: list[Sequence]) -> None:
        """The first choice waits to compute the prompt, the others to start from it."""
        if choices:
            leader, *followers = choices
            leader.leader, leader.followers = None, followers
            for follower in followers:
                follower.leader = leader
            self.waiting.push(leader)

    # ---- figures -----------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return self.config.max_num_seqs - len(self.free_slots)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue; choices that will start from another's prompt are not counted."""
        return len(self.waiting)

    @property
    def has_work(self) -> bool:
        """schedule() has something to do."""
        return bool(self.decoding or self.prefilling or self.waiting)

    @property
    def in_flight(self) -> bool:
        """A plan was handed out and is not committed."""
        return self._flight is not None

    def stats(self) -> dict[str, float]:
        """Gauges and counters by the names that dashboards know, see census.stats."""
        return census.stats(self)

    def check(self) -> None:
        """Prove every invariant of scheduler, pool and cache. Raises AssertionError."""
        census.check(self)
        assert len(set(self._ends)) == len(self._ends), f"a slot ends twice: {self._ends}"
        assert self._flight is not None or not self._finished, "a finished sequence was not swept"
