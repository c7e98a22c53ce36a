"""The engine's one loop: mail, schedule, run, commit, text, mail. On a device that runs by itself the step that is
committed is the one before that just scheduled (see steps).

Everything here happens on one thread. A step's answer to a client is one frame, whatever number of its requests it
touches. When nothing runs the loop sleeps in poll until mail, a deadline, or a wake-up: an idle engine uses no CPU.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo import wire
from octavo_engine.adapters import AdapterStore, UnknownAdapter
from octavo_engine.deltas import PlainDeltas
from octavo_engine.execution.pooling import NotFinite
from octavo_engine.execution.processors import Processors
from octavo_engine.failures import failure
from octavo_engine.intake import Intake, InvalidPrompt
from octavo_engine.mailbox import wrong_protocol
from octavo_engine.requests import Key, Requests
from octavo_engine.scheduling.scheduler import DoesNotFit, QueueFull
from octavo_engine.steps import Steps
from octavo_engine.structured import Grammars, InvalidGrammar

if TYPE_CHECKING:
    from octavo_engine.delivery import Live
    from octavo_engine.execution.runner import Runner, StepResult
    from octavo_engine.mailbox import Client, Mailbox
    from octavo_engine.scheduling.plan import Plan
    from octavo_engine.scheduling.scheduler import Scheduler
    from octavo_engine.scheduling.sequence import Request, Sequence
    from octavo_engine.text import Text

__all__ = ["Core"]

log = logging.getLogger("octavo.engine")


class Core:
    """Owns the requests. `owner` is the client that may end the engine (None: only a signal may)."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        runner: Runner,
        text: Text,
        ready: wire.Ready,
        *,
        owned: bool,
        clients: set[Client],
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
        adapters: AdapterStore | None = None,
        processors: Processors | None = None,
    ) -> None:
        self.mailbox, self.scheduler, self.runner, self.text = mailbox, scheduler, runner, text
        self.ready, self.clock = ready, clock
        self.steps = Steps(scheduler, runner, self._fail_sequence)
        self.intake = Intake(text, ready, mailbox.wake, processors)
        self.adapters = adapters or AdapterStore(None, ready.options, mailbox.wake)
        self.grammars = grammars or Grammars(text, ready.options, mailbox.wake)
        self._owned, self._clients = owned, clients
        self._live = Requests()
        self._plain = PlainDeltas()
        self._outbox: defaultdict[Client, list[Any]] = defaultdict(list)
        self._draining = False
        self._drain_asked = False
        self._counters: defaultdict[str, float] = defaultdict(float)
        for client in clients:
            self._outbox[client].append(ready)

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until drained."""
        self._flush()
        while not self._done:
            for client, message in self.mailbox.receive(self._patience()):
                self._receive(client, message)
            if self._drain_asked:
                self._drain_asked = False
                self._drain(abort=True)
            self._admit_tokenised()
            self._admit_compiled()
            self._expire()
            self._settle_adapters()
            plan = self.scheduler.schedule()
            if plan is not None:
                self._mark_started(plan)
            for done, result in self.steps.advance(plan):
                self._deliver(done, result)
            self._settle_adapters()
            self._flush()
        self.intake.close()
        self.adapters.close()
        self.grammars.close()
        for client in self._clients:
            self.mailbox.send(client, [wire.Dying("drained", "the engine was asked to end")])

    @property
    def _done(self) -> bool:
        return self._draining and not self._live and not self.steps.in_flight

    def ask_drain(self) -> None:
        """End soon. Safe from a signal handler: the loop does the work."""
        self._drain_asked = True
        self.mailbox.wake()

    def _drain(self, *, abort: bool) -> None:
        """Take nothing new; end when what runs has ended, or now."""
        self._draining = True
        if abort:
            for key in self._live.all_keys():
                self._abort(key)

    def _patience(self) -> float | None:
        """Seconds that `receive` may wait."""
        if self.scheduler.has_work or self.steps.in_flight or (self._draining and not self._live):
            return 0
        if self.adapters.waiting and not self._live:
            return 0
        deadline = self._live.next_deadline()
        return None if deadline is None else max(0.0, deadline - self.clock())

    def _deliver(self, plan: Plan, result: StepResult) -> None:
        now = self.clock()
        ended = self._take_read(result)
        broken = [(self.scheduler.sequence_at(slot), error) for slot, error in result.broken.items()]
        advanced = self.scheduler.commit(plan, result.tokens, result.logprobs)
        for key in ended:
            self.scheduler.abort(key)  # what has all its scores need not run its last token
        deltas: defaultdict[Client, list[wire.Delta]] = defaultdict(list)
        deltas.update(self._plain.tell(advanced, result.tokens, self._live.by_key, now))
        for place, behind in self._plain.others:
            sequence = advanced[place]
            assert sequence is not None
            live = self._live[sequence.request.key]
            made = live.delta(sequence, result.tokens[place], result.logprobs[place], behind)
            if made is None:
                continue
            delta, stop = made
            if stop is not None:
                self.scheduler.finish(sequence, "stop", stop)
            deltas[live.client].append(delta)
            if live.open_choices == 0:
                ended.append(sequence.request.key)
        self._counters["generation_tokens"] += sum(map(len, deltas.values()))  # one each
        for request in self.scheduler.beams.take_found():
            live = self._live[request.key]
            live.first_token = now
            found = live.found(request)
            self._counters["generation_tokens"] += sum([len(delta.token_ids) for delta in found])
            deltas[live.client] += found
            ended.append(request.key)
        for client, items in deltas.items():
            self._outbox[client].append(wire.Deltas(items))
        for sequence, error in broken:
            if sequence.finish_reason is None:
                self._fail_sequence(sequence, error)
        for key in ended:
            live = self._live[key]
            self._live.end(key)
            self._counters["request_success"] += 1
            self._outbox[live.client].append(live.finished(now))

    def _take_read(self, result: StepResult) -> list[Key]:
        """What a step found out about prompts, for their requests. Returns those that have got all they want."""
        complete: list[Key] = []
        for slot, entries in result.prompt_logprobs.items():
            key = self.scheduler.sequence_at(slot).request.key
            live = self._live.get(key)
            if live is not None and live.take_logprobs(entries):
                complete.append(key)
        for slot, vector in result.vectors.items():
            key = self.scheduler.sequence_at(slot).request.key
            live = self._live.get(key)
            if live is None:
                continue
            try:
                live.take_vector(vector)
            except NotFinite as error:
                self._fail_by(key, error)
            else:
                complete.append(key)
        return complete

    def _mark_started(self, plan: Plan) -> None:
        for start in plan.starts:
            live = self._live.get(self.scheduler.sequence_at(start.slot).request.key)
            if live is not None and live.started is None:
                live.started = self.clock()

    def _flush(self) -> None:
        if not self._outbox:
            return
        for client, messages in self._outbox.items():
            if not self.mailbox.send(client, messages):
                self._lost(client)
        self._outbox.clear()

    # ---- mail --------------------------------------------------------------------------------------------------

    def _receive(self, client: Client, message: Any) -> None:
        match message:
            case wire.Generate():
                self._generate(client, message)
            case wire.Abort():
                for request_id in message.request_ids:
                    if (key := self._live.key_of(client, request_id)) is not None:
                        self._abort(key)
            case wire.StatsRequest():
                self._outbox[client].append(wire.Stats(message.token, self.stats()))
            case wire.Tokenize() | wire.Detokenize():
                limit = self.ready.options.max_queued_requests
                self._answer(client, self.intake.tokenize(client, message, limit))
            case wire.LoadLora():
                self._answer(client, self.adapters.load(client, message))
            case wire.UnloadLora():
                self._answer(client, self.adapters.unload(client, message))
            case wire.ListLoras():
                self._answer(client, wire.Loras(message.request_id, self.adapters.infos()))
            case wire.Hello():
                if message.protocol != wire.PROTOCOL_VERSION:
                    self._outbox[client].append(wrong_protocol(message.protocol))
                    return
                self._clients.add(client)
                self._outbox[client].append(self.ready)
            case wire.Goodbye():
                self._lost(client)
            case wire.Drain():
                if self._owned:
                    self._drain(abort=message.abort)
                else:
                    log.warning("a client asked a shared engine to end; ignored")

    def _generate(self, client: Client, message: wire.Generate) -> None:
        now = self.clock()
        if self._live.key_of(client, message.request_id) is not None:
            text = f"request id {message.request_id} is already in use"
            self._outbox[client].append(wire.Failed(message.request_id, "invalid_request", text))
            return
        key, live = self._live.begin(client, message, now)
        options = self.ready.options
        if self._draining:
            self._fail(key, "draining", "the engine is shutting down and takes no new requests")
            return
        pending = self.intake.num_pending + self.grammars.num_pending
        free = len(self.scheduler.running.free_slots) - self.scheduler.num_waiting  # what starts soon does not queue
        if pending - max(0, free) >= options.max_queued_requests:
            waiting = f"{pending} requests are waiting to be tokenised or for their grammars"
            self._fail(key, "overloaded", f"{waiting}; EngineOptions.max_queued_requests={options.max_queued_requests}")
            return
        for which in ("queue", "first_token", "total"):
            seconds = getattr(message.params, f"{which}_timeout")
            if seconds is not None:
                self._live.watch(key, now + seconds, which)
        try:
            if message.lora is not None:
                live.adapter = self.adapters.find(message.lora)
            request = self.intake.begin(key, message, now)
        except Exception as error:
            self._refuse(key, error)
            return
        if request is not None:
            self._admit(live, request)

    def _answer(self, client: Client, answer: Any | None) -> None:
        if answer is not None:
            self._outbox[client].append(answer)

    def _settle_adapters(self) -> None:
        if self.adapters.waiting:
            used = {live.adapter.number for live in self._live if live.adapter is not None}
            for client, answer in self.adapters.settle(used):
                self._outbox[client].append(answer)

    def _admit(self, live: Live, request: Request) -> None:
        """To the scheduler; where its grammar is still to be compiled, when that is done."""
        structured = request.params.structured
        if live.adapter is not None:
            request.adapter, request.cache_salt = live.adapter.number, live.adapter.salt
        try:
            if structured is not None and request.grammar is None:
                request.grammar = self.grammars.find(request.key, structured, request)
                if request.grammar is None:
                    deadline = self.clock() + self.ready.options.grammar_timeout
                    self._live.watch(request.key, deadline, "grammar")
                    return
            self.scheduler.add(request)
        except (InvalidGrammar, DoesNotFit, QueueFull) as error:
            self._fail_by(request.key, error)
        else:
            self._counters["prompt_tokens"] += len(request.prompt)
            live.admit(request, self.text)

    def _admit_tokenised(self) -> None:
        self.intake.begin_round()
        if not self.intake.num_pending:
            return
        for client, answer in self.intake.answers():
            self._outbox[client].append(answer)
        for key, result in self.intake.ready():
            live = self._live.get(key)
            if live is None:
                continue  # aborted or timed out meanwhile
            try:
                if isinstance(result, Exception):
                    raise result
                request = self.intake.request(key, result, live.generate, live.arrival)
            except Exception as error:
                self._refuse(key, error)
            else:
                self._admit(live, request)

    def _admit_compiled(self) -> None:
        for request, result in self.grammars.ready():
            if isinstance(result, Exception):
                self._fail_by(request.key, result)
            else:
                request.grammar = result
                self._admit(self._live[request.key], request)

    # ---- ends --------------------------------------------------------------------------------------------------

    def _abort(self, key: Key) -> None:
        live = self._live.end(key)
        if live is not None:
            self._drop(key)
            self._counters["request_aborted"] += 1
            self._close(live, live.finished(self.clock()))

    def _fail(self, key: Key, code: str, message: str, which: str | None = None) -> None:
        live = self._live.end(key)
        if live is not None:
            self._drop(key)
            self._counters["request_failed"] += 1
            self._close(live, live.failed(code, message, self.clock(), which))

    def _fail_by(self, key: Key, error: Exception, at: str = "") -> None:
        self._fail(key, *failure(error, at))

    def _refuse(self, key: Key, error: Exception) -> None:
        """A prompt that can't be taken: a tokenizer or a template that breaks ends this request, not the engine."""
        at = "the prompt could not be taken"
        if not isinstance(error, (UnknownAdapter, InvalidPrompt)):
            log.error(at, exc_info=error)
        self._fail_by(key, error, at)

    def _drop(self, key: Key) -> None:
        """Wherever it is by now."""
        self.intake.cancel(key)
        self.grammars.cancel(key)
        self.scheduler.abort(key)

    def _fail_sequence(self, sequence: Sequence, error: Exception) -> None:
        """The model can't go on with it."""
        self._fail_by(sequence.request.key, error, "the model failed on this request")

    def _close(self, live: Live, end: wire.Finished | wire.Failed) -> None:
        """Cut short: what had been generated is all sent first."""
        deltas = live.held_back()
        if deltas:
            self._outbox[live.client].append(wire.Deltas(deltas))
        self._outbox[live.client].append(end)

    def _expire(self) -> None:
        for key, live, which in self._live.expired(self.clock()):
            if which == "grammar":
                if self.grammars.is_pending(key):
                    limit = f"EngineOptions.grammar_timeout={self.ready.options.grammar_timeout:g} s"
                    self._fail(key, "invalid_grammar", f"structured: not compiled within {limit}")
            elif live.waits_for(which):
                seconds = getattr(live.generate.params, f"{which}_timeout")
                text = f"{which}_timeout={seconds:g} s passed; raise SamplingParams.{which}_timeout"
                self._fail(key, "timeout", text, which)

    def _lost(self, client: Client) -> None:
        """A client has gone: nothing can be told to it any more, its requests free their pages."""
        self._clients.discard(client)
        for key in self._live.all_keys(client):
            self._live.end(key)
            self._drop(key)

    def stats(self) -> dict[str, float]:
        """Counters and gauges by the metric names that dashboards know."""
        return {
            **self.scheduler.stats(),
            **self._counters,
            **self.steps.stats(),
            "num_requests_live": float(len(self._live)),
            "num_clients": float(len(self._clients)),
            "num_prompts_tokenising": float(self.intake.num_pending),
            "num_grammars_pending": float(self.grammars.num_pending),
            "grammars_compiled": float(self.grammars.num_compiled),
        }
