"""The scheduler: who runs in the next step, with which tokens, in which pages.

A step has a token budget. Running sequences decode first, one token each; then prompts are computed in chunks; then
waiting sequences are admitted. Where a decode finds no page, somebody gives way (decoding.py).


With max_in_flight 2 a step is scheduled while the one before it runs and what that draws is known by its place only
(plan.PENDING). Nobody gives way then: who lacks a page waits until all that was handed out is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq

from octavo_engine.scheduling import census
from octavo_engine.scheduling.admission import DoesNotFit, QueueFull, SchedulerConfig, check_queue, output_room
from octavo_engine.scheduling.beams import Beams, Scored
from octavo_engine.scheduling.decoding import Decoding
from octavo_engine.scheduling.flight import Flight, Flights, Prefill
from octavo_engine.scheduling.page_tables import PageTables
from octavo_engine.scheduling.plan import PENDING, Plan, SeqStart, SeqStep
from octavo_engine.scheduling.prefix_cache import CachedPage
from octavo_engine.scheduling.running import Running
from octavo_engine.scheduling.sequence import FinishReason, Request, Sequence
from octavo_engine.scheduling.speculation import Proposer, Speculation
from octavo_engine.scheduling.waiting import WaitingQueue

__all__ = ["DoesNotFit", "QueueFull", "Scheduler", "SchedulerConfig"]


class Scheduler:
    """One step: `plan = schedule()`, run it, `commit(plan, tokens)`, oldest plan first. Not thread-safe.

    A plan that failed needs no commit once all its sequences were finished. An ended sequence keeps slot and pages
    until every plan that it is in has been committed, so that it can be run again. hash_page: see PrefixCache.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        hash_page: Callable[[int | bytes, bytes], int] | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self.config = config
        self.tables = PageTables(config.num_pages, config.page_size, config.enable_prefix_caching, hash_page)
        self.pool = self.tables.pool
        self.speculation = None if proposer is None else Speculation(proposer, self.tables)
        self.waiting = WaitingQueue(config.max_overtaken)
        self.requests: dict[Hashable, Request] = {}
        self.running = Running(config.max_num_seqs)
        self.beams = Beams(config, self.tables, self.running, self.waiting)
        self.counters = census.Counters()
        self.decoding = Decoding(config, self.tables, self.running, self.waiting, self.counters)
        self._watermark = int(config.num_pages * config.watermark)
        self._finished: list[Sequence] = []  # they still have slot and pages
        self.flights = Flights(config.max_in_flight)
        self._arrivals = 0
        self._step = 0

    # ---- requests ----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises DoesNotFit when it can never run, QueueFull when as much waits as is allowed (what free slots will take
        at the next step doesn't count as waiting), ValueError when its key is in use.
        """
        room = output_room(request, self.config)
        check_queue(request, self.config, len(self.waiting), self.waiting.num_tokens, len(self.running.free_slots))
        if request.key in self.requests:
            raise ValueError(f"a request with key {request.key!r} is live")
        self._arrivals += 1
        for seq in request.sequences:
            seq.max_output = room
            seq.rank = (request.params.priority, self._arrivals, seq.index)
            seq.choose_regime(self.config.regimes)
        if request.search is not None:
            request.search.max_tokens = room
        self.requests[request.key] = request
        self.waiting.push_choices(request.sequences)

    def finish(self, sequence: Sequence, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End one sequence now, at any time; a no-op if it has ended. Its slot stands in the next plan's ends.

        One beam takes the others with it.
        """
        if sequence.finish_reason is not None:
            return
        if sequence.group is not None:
            for beam in sequence.request.sequences:
                self._end(beam, reason, stop_reason)
            self.beams.forget(sequence.request)
            if not self.flights:
                self._sweep()
            return
        self._end(sequence, reason, stop_reason)
        if sequence.slot >= 0:
            if not self.flights:
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
        return self.running.at(slot)

    # ---- a step ------------------------------------------------------------------------------------------------

    def schedule(self) -> Plan | None:
        """The next step, or None when nothing can run: nothing is there, or it waits for what is in flight.

        Slots that became free stand in `ends` of the next plan that runs something, once; while nothing runs they are
        held back, since what the runner keeps of a slot is replaced at its next start anyway.
        Raises RuntimeError when max_in_flight plans are not committed and a sequence of the oldest lives.
        """
        if self.flights.full:
            self._release(self.flights.drop())
        self.decoding.stalled = self.decoding.stalled and bool(self.flights)
        if self.decoding.stalled:
            return None
        plan = Plan(self._step, [], [], [], [])
        if self.config.regimes is not None and not self.flights:
            self.decoding.change_regimes()
        preempted = self.counters.preemptions
        decodes = self.decoding.add(plan, ahead=bool(self.flights), ended=bool(self._finished))
        drafted, guessing = 0, self.speculation
        if guessing is not None and not guessing.may_guess(len(decodes)):
            if plan.again is None:
                guessing.pause(decodes)
            guessing = None
        if guessing is not None:
            drafted = guessing.add(plan, decodes, self.config.max_num_batched_tokens)
        budget = self.config.max_num_batched_tokens - len(decodes) - drafted
        prefills = self._prefill(plan, budget)
        if self.waiting and preempted == self.counters.preemptions and not self.decoding.stalled:
            self._admit(plan, budget - sum(prefill.length for prefill in prefills), prefills)
        if not plan.steps:
            return self.schedule() if not self.flights and self.decoding.shelve() else None
        for prefill in prefills:
            if len(prefill.samplers) == 1:  # forks wait: they share what the prompt's commit leaves in the table
                self.running.prefilling.remove(prefill.seq)
                self.running.decode(prefill.seq)
        if guessing is None:
            self.decoding.keep(plan, decodes)
        else:
            self.decoding.forget()
        plan.ends = self.running.take_ends()
        filled, ends = self.decoding.filled, self.decoding.ends
        if any(prefill.samplers for prefill in prefills):
            ends = None
        self.flights.push(Flight(plan, decodes, prefills, filled, ends, drafted=drafted > 0))
        self._step += 1
        return plan

    def commit(
        self, plan: Plan, tokens: list[int], logprobs: Seq[Scored | None] = ()
    ) -> list[Sequence] | list[Sequence | None]:
        """The plan ran and drew `tokens`, in the order of its samplers. logprobs: alongside, needed for beams.

        Returns the sequences in that order, with the token appended and finish_reason set where it was the last; None
        in place of a sequence that had ended before, whose token was dropped, of what is REJECTED, and of beams (see
        beams.take_found).
        """
        flight, drew = self.flights.land(plan, len(tokens))
        gone: list[int] = []  # places in `drew`
        page_size = self.config.page_size
        for seq, stop in flight.filled:
            if seq.finish_reason is None:
                self.tables.store(seq, stop - page_size, stop)
        for prefill in flight.prefills:
            self._commit_prefill(prefill)
        if flight.ends is not None and not self._finished and flight.ends.isdisjoint(tokens):  # nothing but tokens
            for seq, token in zip(drew, tokens, strict=True):
                seq.output.append(token)
            self._release(flight)
            return drew
        for place, (seq, token) in enumerate(zip(drew, tokens, strict=True)):
            if seq.finish_reason is None and seq.group is None and token >= 0:
                output = seq.output
                output.append(token)
                if (token in seq.stops or len(output) >= seq.max_output) and (end := seq.ended_by(token)):
                    self._end(seq, *end)
            else:
                gone.append(place)
        if flight.drafted and self.speculation is not None:
            self.speculation.land(plan, flight.decodes, tokens)
        if gone:
            for seq in self.beams.advance(drew, logprobs):
                self._end(seq, "stop", None)
        self._release(flight)
        if not gone:
            return drew
        advanced: list[Sequence | None] = list(drew)
        for place in gone:
            advanced[place] = None
        return advanced

    def measured(self, plan: Plan, seconds: float) -> None:
        """How long a step took."""
        if self.speculation is not None and all(len(step.tokens) == step.num_drawn for step in plan.kinds):
            self.speculation.cost.add(plan.num_tokens, seconds)

    def resolve(self, plan: Plan) -> None:
        """Put the tokens that are known by now in place of PENDING, so that a plan in flight can be run again.

        A sequence that ended before it drew the token gets 0: what is drawn from that is dropped.
        """
        for step in plan.write_out():
            if step.tokens[0] == PENDING:
                step.tokens = self.sequence_at(step.slot).tokens(step.start, step.start + 1) or [0]

    def _release(self, flight: Flight) -> None:
        """After `flight` has landed or was dropped: give back what was kept for it alone."""
        if self.tables.replaced:
            keeper = self.flights.newest if self.flights else flight
            keeper.replaced += self.tables.replaced
            self.tables.replaced = []
        for page in flight.replaced:
            self.pool.release(page)
        if self._finished:
            self._sweep()

    # ---- prefill and admission ---------------------------------------------------------------------------------

    def _prefill(self, plan: Plan, budget: int) -> list[Prefill]:
        prefills: list[Prefill] = []
        for seq in self.running.prefilling:
            if not budget:
                break
            if seq.finish_reason is not None or seq.num_computed == seq.num_tokens:
                continue  # it ended, or will end or fork, with a step that is in flight
            length = self.tables.chunk(seq, budget)
            if not length:
                break  # decodes took the pages that were there at its admission, and will give them back
            budget -= length
            prefills.append(self._compute(seq, length, plan))
        return prefills

    def _compute(self, seq: Sequence, length: int, plan: Plan) -> Prefill:
        """Put the next `length` tokens of `seq` into the plan; there are pages for them."""
        request, start = seq.request, seq.num_computed
        stop = start + length
        self.tables.grow(seq, stop)
        offset, seq.sent = seq.sent, len(seq.pages)
        whole = stop == seq.num_tokens
        draws = whole and request.draws
        forks = self._fork(seq, plan) if draws else []
        samplers = [seq, *forks] if draws else []
        slots = [sampler.slot for sampler in samplers]
        step = SeqStep(seq.slot, start, seq.tokens(start, stop), offset, seq.pages[offset:], slots, regime=seq.regime)
        if request.wants_prompt_scored and start == request.prompt_scored:
            request.prompt_scored = stop
            assert request.params.prompt_logprobs is not None
            step.prompt_logprobs = request.params.prompt_logprobs
            step.next_token = request.prompt[stop] if stop < len(request.prompt) else -1
        if request.pooling == "mean" or (request.pooling and whole):
            step.pooling, step.pooled = request.pooling, whole
        plan.add(step)
        seq.num_computed = stop
        return Prefill(seq, start, length, samplers)

    def _begin(self, seq: Sequence) -> SeqStart:
        start = self.running.begin(seq)
        if self.speculation is not None:
            self.speculation.begin(seq)
        return start

    def _fork(self, seq: Sequence, plan: Plan) -> list[Sequence]:
        """Start the choices that can start with `seq`; the others wait. They get its pages once those are computed.

        Each will soon write to a page of its own, so no more start than there are pages.
        Beams only take their slots here: what they go on from is known when this one has drawn.
        """
        if seq.group is not None:
            for _ in range(min(len(seq.followers), len(self.running.free_slots))):
                plan.starts.append(self._begin(seq.followers.pop(0)))
            return []
        followers, seq.followers = seq.followers, []
        count = min(len(followers), len(self.running.free_slots), self.pool.num_available)
        for follower in followers[:count]:
            plan.starts.append(self._begin(follower))
        self.waiting.push_choices(followers[count:])
        return followers[:count]

    def _admit(self, plan: Plan, budget: int, prefills: list[Prefill]) -> None:
        while budget and self.waiting and self.running.free_slots:
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
            plan.starts.append(self._begin(seq))
            self.running.prefill(seq)
            length = self.tables.chunk(seq, budget)
            budget -= length
            prefills.append(self._compute(seq, length, plan))

    def _find_room(self, seq: Sequence) -> list[CachedPage] | None:
        """Its cached prefix, if there are pages for the rest besides what running prompts will still need."""
        tables, running = self.tables, self.running
        if not (running.decoding or running.prefilling or running.parked):
            return tables.find(seq)
        promised = sum(tables.num_pages(s.num_tokens) - len(s.pages) for s in running.prefilling)
        return tables.find_within(seq, self.pool.num_available - promised - self._watermark, self._step)

    def _commit_prefill(self, prefill: Prefill) -> None:
        seq, start, length, samplers = prefill
        if seq.finish_reason is None:
            self.tables.store(seq, start, start + length)
        else:
            seq.node = None  # perhaps it ended because the model failed on it: what it wrote is not for others
        if not seq.request.draws and start + length == seq.num_tokens and seq.finish_reason is None:
            self._end(seq, "stop", None)
        if len(samplers) < 2:
            return
        self.running.prefilling.remove(seq)
        self.running.decode(seq)
        for follower in samplers[1:]:
            self.tables.share(seq, follower)
            follower.num_cached = seq.num_cached
            self.running.decode(follower)

    # ---- ends --------------------------------------------------------------------------------------------------

    def _end(self, seq: Sequence, reason: FinishReason, stop_reason: str | int | None) -> None:
        """Slot and pages are taken by the next _sweep."""
        seq.finish_reason, seq.stop_reason = reason, stop_reason
        seq.request.num_open -= 1
        if not seq.request.num_open:
            del self.requests[seq.request.key]
        if seq.slot >= 0:
            self._finished.append(seq)

    def _sweep(self) -> None:
        """Take slot and pages from all that have ended and are in no flight."""
        flying = self.flights.sequences()
        finished = [seq for seq in self._finished if seq not in flying]
        self._finished = [seq for seq in self._finished if seq in flying]
        self.running.remove_ended(flying)
        for seq in finished:
            self.decoding.vacate(seq)
            self._promote(seq)

    def _promote(self, leader: Sequence) -> None:
        """`leader` ended before the choices behind it could start: the next of them leads."""
        followers, leader.followers = leader.followers, []
        self.waiting.push_choices(followers)

    # ---- figures -----------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue; choices that will start from another's prompt are not counted."""
        return len(self.waiting)

    @property
    def has_work(self) -> bool:
        """There are sequences that have not ended."""
        running = self.running
        return bool(running.decoding or running.prefilling or running.parked or self.waiting)

    @property
    def in_flight(self) -> bool:
        """A plan was handed out and is not committed."""
        return bool(self.flights)

    def stats(self) -> dict[str, float]:
        """Gauges and counters by the names that dashboards know, see census.stats."""
        return census.stats(self)

    def check(self) -> None:
        """Prove every invariant of scheduler, pool and cache. Raises AssertionError."""
        census.check(self)
        assert self.flights or not self._finished, "a finished sequence was not swept"
