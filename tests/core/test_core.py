"""The engine's loop with a scripted mailbox and model: what each message leads to, without a process or a tensor."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from octavo import wire
from octavo.options import EngineOptions, SamplingParams
from octavo_engine.core import Core
from octavo_engine.execution.runner import StepResult
from octavo_engine.scheduling.plan import PENDING, Plan
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.text import Text

A, B = b"client a", b"client b"
POISON = 13  # a prompt that holds it breaks the model
UNLAUNCHED = 213  # a prompt that holds it breaks before the model is run


class ScriptedMailbox:
    """Gives one list of mail a loop round; drains the engine when the script is over and nothing is live."""

    def __init__(self, script: list[list[tuple[bytes, Any]]]) -> None:
        self.script = list(script)
        self.sent: dict[bytes, list[Any]] = {}
        self.gone: set[bytes] = set()
        self.frames = 0
        self.woken = threading.Event()
        self.pending: Callable[[], int] = lambda: 0

    def receive(self, timeout: float | None) -> Iterator[tuple[bytes, Any]]:
        if self.script:
            yield from self.script.pop(0)
        elif timeout is None:
            if self.pending():
                assert self.woken.wait(20)  # what a real mailbox does: sleep until the worker thread wakes it
                self.woken.clear()
            else:
                yield A, wire.Drain()

    def send(self, client: bytes, messages: list[Any]) -> bool:
        if client in self.gone:
            return False
        self.frames += 1
        self.sent.setdefault(client, []).extend(wire.decode_to_client(wire.encode(messages)))
        return True

    def wake(self) -> None:
        self.woken.set()

    def of(self, client: bytes, kind: type) -> list[Any]:
        return [message for message in self.sent.get(client, []) if isinstance(message, kind)]


class CountingRunner:
    """Draws last token + 1. Raises on a poisoned sequence."""

    asynchronous = False

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def submit(self, plan: Plan) -> Plan:
        if any(POISON in seq.tokens or UNLAUNCHED in seq.tokens for seq in plan.seqs):
            raise FloatingPointError("poison")
        self.plans.append(plan)
        return plan

    def collect(self, plan: Plan) -> StepResult:
        drawn = [seq.tokens[-1] + 1 for seq in plan.seqs for _ in seq.samplers]
        return StepResult(drawn, [None] * len(drawn), {})


class AheadRunner:
    """The same on a device that runs a step only when somebody waits for it, and never the later one first."""

    asynchronous = True

    def __init__(self) -> None:
        self.waiting: list[tuple[Plan, list[list[int]]]] = []
        self.last: dict[int, int] = {}
        self.done: dict[int, StepResult | Exception] = {}
        self.most = 0

    def submit(self, plan: Plan) -> Plan:
        if any(UNLAUNCHED in seq.tokens for seq in plan.seqs):
            raise FloatingPointError("not launched")
        self.waiting.append((plan, [list(seq.tokens) for seq in plan.seqs]))
        self.most = max(self.most, len(self.waiting))
        return plan

    def _run(self, plan: Plan, tokens: list[list[int]]) -> StepResult:
        drawn: list[int] = []
        poisoned = False
        for seq, given in zip(plan.seqs, tokens, strict=True):
            known = [self.last[seq.slot] if token == PENDING else token for token in given]
            poisoned |= POISON in known
            for slot in seq.samplers:
                self.last[slot] = known[-1] + 1
                drawn.append(known[-1] + 1)
        if poisoned:
            raise FloatingPointError("poison")
        return StepResult(drawn, [None] * len(drawn), {})

    def collect(self, plan: Plan) -> StepResult:
        while id(plan) not in self.done:
            first, tokens = self.waiting.pop(0)
            try:
                self.done[id(first)] = self._run(first, tokens)
            except FloatingPointError as error:
                self.done[id(first)] = error
        result = self.done.pop(id(plan))
        if isinstance(result, Exception):
            raise result
        return result

    def discard(self, plan: Plan) -> None:
        with contextlib.suppress(FloatingPointError):
            self.collect(plan)


RUNNER: dict[str, type[CountingRunner | AheadRunner]] = {}


@pytest.fixture(params=[CountingRunner, AheadRunner], ids=["in turn", "ahead"], autouse=True)
def runner_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNNER, "kind", request.param)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def run(
    script: list[list[tuple[bytes, Any]]],
    *,
    gone: set[bytes] | None = None,
    text: Text | None = None,
    **options: Any,
) -> ScriptedMailbox:
    settings = EngineOptions(model="m", max_num_batched_tokens=64, max_model_len=100, max_num_seqs=8, **options)
    config = SchedulerConfig(
        num_pages=64,
        page_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_model_len=100,
        enable_prefix_caching=True,
        max_queued_requests=settings.max_queued_requests,
        max_queued_tokens=settings.max_queued_tokens,
        max_in_flight=1 + RUNNER["kind"].asynchronous,
    )
    ready = wire.Ready(wire.PROTOCOL_VERSION, 1, "0", settings, "Test", False, False, 1000, 64, (2,))
    mailbox = ScriptedMailbox(script)
    mailbox.gone = gone or set()
    scheduler = Scheduler(config)
    text = text or Text(eos_token_ids=[2])
    runner: Any = RUNNER["kind"]()
    core = Core(mailbox, scheduler, runner, text, ready, owned=True, clients={A, B}, clock=Clock())  # type: ignore[arg-type]
    mailbox.pending = lambda: core.intake.num_pending
    core.run()
    scheduler.check()
    assert scheduler.stats()["kv_pages_free"] == 64
    return mailbox


def generate(request_id: int, prompt: list[int], **params: Any) -> wire.Generate:
    return wire.Generate(request_id, SamplingParams(temperature=0, **params), token_ids=prompt)


def tokens(mailbox: ScriptedMailbox, client: bytes, request_id: int) -> list[int]:
    deltas = [d for m in mailbox.of(client, wire.Deltas) for d in m.deltas if d.request_id == request_id]
    return [token for delta in deltas for token in delta.token_ids]


def test_ready_is_told_and_requests_end_once() -> None:
    mail = run([[(A, generate(1, [50], max_tokens=3)), (B, generate(1, [60], max_tokens=2))]])
    assert len(mail.of(A, wire.Ready)) == len(mail.of(B, wire.Ready)) == 1
    assert tokens(mail, A, 1) == [51, 52, 53]
    assert tokens(mail, B, 1) == [61, 62]
    (done,) = mail.of(A, wire.Finished)
    assert done.choices == (wire.Choice(0, "length", None, None),)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (1, 3)
    assert mail.of(A, wire.Dying)[0].code == "drained"


def test_one_frame_a_step_and_client() -> None:
    mail = run([[(A, generate(i, [50 + i], max_tokens=5)) for i in range(8)]])
    assert len(mail.of(A, wire.Deltas)) == 5
    assert mail.frames <= 5 + 4  # Ready and the farewells beside


def test_end_of_sequence_and_stop_token() -> None:
    mail = run([[(A, generate(1, [0])), (A, generate(2, [20], stop_token_ids=[23]))]])
    ends = {done.request_id: done.choices[0] for done in mail.of(A, wire.Finished)}
    assert tokens(mail, A, 1) == [1, 2]
    assert (ends[1].finish_reason, ends[1].stop_reason) == ("stop", None)
    assert (ends[2].finish_reason, ends[2].stop_reason) == ("stop", 23)


@pytest.mark.parametrize(
    ("message", "code", "match"),
    [
        (generate(1, []), "invalid_request", "no tokens"),
        (generate(1, [1000]), "invalid_request", "vocabulary of 1000"),
        (generate(1, [1], logit_bias={2000: 1.0}), "invalid_request", "logit_bias"),
        (generate(1, [1], allowed_token_ids=[1001]), "invalid_request", "allowed_token_ids"),
        (generate(1, [1], stop="x"), "invalid_request", "tokenizer"),
        (generate(1, [1], prompt_logprobs=1001), "prompt_logprobs", "prompt_logprobs"),
        (generate(1, [1] * 99, max_tokens=50), "prompt_too_long", "max_model_len"),
        (wire.Generate(1, SamplingParams()), "invalid_request", "exactly one"),
        (wire.Generate(1, SamplingParams(), text="hello"), "invalid_request", "tokenizer"),
    ],
)
def test_a_bad_request_fails_alone(message: wire.Generate, code: str, match: str) -> None:
    mail = run([[(A, message), (A, generate(2, [50], max_tokens=2))]])
    (failed,) = mail.of(A, wire.Failed)
    assert failed.request_id == 1
    assert failed.code == (code if code != "prompt_logprobs" else "invalid_request")
    assert match in failed.message
    assert tokens(mail, A, 2) == [51, 52]


def test_a_failing_model_fails_only_the_request_at_fault() -> None:
    prompts = {1: [50], 2: [POISON], 3: [60], 4: [POISON - 1], 5: [UNLAUNCHED]}  # 4 draws the poison itself
    mail = run([[(A, generate(i, prompt, max_tokens=6)) for i, prompt in prompts.items()]])
    assert tokens(mail, A, 1) == [51, 52, 53, 54, 55, 56]
    assert tokens(mail, A, 3) == [61, 62, 63, 64, 65, 66]
    assert {failed.request_id: failed.code for failed in mail.of(A, wire.Failed)} == {
        2: "failed",
        4: "failed",
        5: "failed",
    }
    assert tokens(mail, A, 4) == [POISON]


class BrokenText(Text):
    """A tokenizer that breaks on some prompts, as third-party code may."""

    has_tokenizer = True
    longest_token = 1 << 20

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if "break" in text:
            raise RuntimeError("inside the tokenizer")
        return [50]


@pytest.mark.parametrize("length", [1, 10_000], ids=["inline", "worker thread"])
def test_a_breaking_tokenizer_fails_only_its_request(length: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=2)
    script = [[(A, wire.Generate(i, params, text=word * length)) for i, word in enumerate(["break ", "fine "])]]
    mail = run(script, text=BrokenText(eos_token_ids=[2]))
    assert [(failed.request_id, failed.code) for failed in mail.of(A, wire.Failed)] == [(0, "failed")]
    assert tokens(mail, A, 1) == [51, 52]


class WatchedText(Text):
    """Tells which texts were tokenised on the engine's thread, and draws their token from the first letter."""

    has_tokenizer = True
    longest_token = 1 << 20

    def __init__(self) -> None:
        super().__init__(eos_token_ids=[2])
        self.engine, self.inline = threading.get_ident(), ""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if threading.get_ident() == self.engine:
            self.inline += text[0]
        return [ord(text[0])]


def test_a_crowd_of_prompts_does_not_hold_up_the_steps() -> None:
    """What is too much for one round goes to the worker thread; the next round has time again."""
    params = SamplingParams(temperature=0, max_tokens=1)
    rounds = [[(A, wire.Generate(ord(c), params, text=c * 3000)) for c in crowd] for crowd in ("ABCDE", "F")]
    words = SamplingParams(temperature=0, max_tokens=1, bad_words=("x" * 9000,))
    text = WatchedText()
    # There are slots for all of them: none is one too many for the queue, as it would not be with shorter prompts.
    mail = run([*rounds, [(A, wire.Generate(ord("G"), words, text="G"))]], text=text, max_queued_requests=2)
    assert text.inline == "ABF"
    assert {done.request_id: tokens(mail, A, done.request_id) for done in mail.of(A, wire.Finished)} == {
        ord(c): [ord(c) + 1] for c in "ABCDEFG"
    }


def test_abort_is_idempotent_and_ends_the_request_once() -> None:
    mail = run([[(A, generate(1, [50], max_tokens=90))], [], [(A, wire.Abort([1, 1, 7]))], [(A, wire.Abort([1]))]])
    (done,) = mail.of(A, wire.Finished)
    assert done.choices[0].finish_reason == "abort"
    assert done.usage.completion_tokens == len(tokens(mail, A, 1)) > 0


def test_a_used_request_id_is_refused() -> None:
    mail = run([[(A, generate(1, [50], max_tokens=4)), (A, generate(1, [60])), (B, generate(1, [70], max_tokens=4))]])
    (failed,) = mail.of(A, wire.Failed)
    assert "already in use" in failed.message
    assert tokens(mail, A, 1) == [51, 52, 53, 54]
    assert tokens(mail, B, 1) == [71, 72, 73, 74]


def test_overload_is_told_at_once() -> None:
    mail = run([[(A, generate(i, [50], max_tokens=5)) for i in range(20)]], max_queued_requests=4)
    assert {failed.code for failed in mail.of(A, wire.Failed)} == {"overloaded"}
    assert all("max_queued_requests" in failed.message for failed in mail.of(A, wire.Failed))
    assert len(mail.of(A, wire.Failed)) + len(mail.of(A, wire.Finished)) == 20
    assert len(mail.of(A, wire.Finished)) >= 8


@pytest.mark.parametrize("which", ["queue", "first_token", "total"])
def test_deadlines(which: str) -> None:
    """Eight long requests fill all slots; a ninth waits, and its deadline passes."""
    crowd = [(A, generate(i, [50 + i], max_tokens=90)) for i in range(8)]
    mail = run([[*crowd, (A, generate(9, [70], **{f"{which}_timeout": 0.3}))]])
    (failed,) = mail.of(A, wire.Failed)
    assert (failed.request_id, failed.code, failed.which) == (9, "timeout", which)
    assert f"SamplingParams.{which}_timeout" in failed.message
    assert len(mail.of(A, wire.Finished)) == 8


def test_a_total_timeout_keeps_what_was_sent() -> None:
    mail = run([[(A, generate(1, [50], max_tokens=90, total_timeout=0.3, first_token_timeout=0.2))]])
    (failed,) = mail.of(A, wire.Failed)
    assert failed.which == "total"
    assert failed.usage.completion_tokens == len(tokens(mail, A, 1)) > 0
    assert failed.prompt_token_ids == (50,)


def test_a_lost_client_frees_its_pages() -> None:
    mail = run([[(A, generate(1, [50], max_tokens=3)), (B, generate(1, [60], max_tokens=90))]], gone={B})
    assert tokens(mail, A, 1) == [51, 52, 53]
    assert B not in mail.sent


def test_goodbye_aborts_in_silence() -> None:
    mail = run([[(B, generate(1, [60], max_tokens=90))], [], [(B, wire.Goodbye())]])
    assert not mail.of(B, wire.Finished)
    assert len(tokens(mail, B, 1)) < 5


def test_choices_share_a_request() -> None:
    mail = run([[(A, generate(1, [50] * 20, n=3, max_tokens=3))]])
    (done,) = mail.of(A, wire.Finished)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert done.usage.completion_tokens == 9
    assert tokens(mail, A, 1).count(53) == 3


def test_draining_takes_nothing_new() -> None:
    first = generate(1, [50], max_tokens=5)
    mail = run([[(A, first)], [(A, wire.Drain(abort=False)), (A, generate(2, [60]))]])
    assert tokens(mail, A, 1) == [51, 52, 53, 54, 55]
    (failed,) = mail.of(A, wire.Failed)
    assert (failed.request_id, failed.code) == (2, "draining")


def test_stats_and_a_wrong_protocol() -> None:
    mail = run([[(A, wire.StatsRequest(5)), (b"new", wire.Hello(wire.PROTOCOL_VERSION + 1))]])
    (stats,) = mail.of(A, wire.Stats)
    assert stats.token == 5
    assert stats.values["kv_pages_total"] == 64
    assert mail.of(b"new", wire.Dying)[0].code == "protocol"
