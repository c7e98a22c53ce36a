"""The engine's loop around a tiny model, in turn or on a device that puts off its work; requests and what they get."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch

from octavo import wire
from octavo.options import EngineOptions, SamplingParams
from octavo_engine.core import Core
from octavo_engine.execution.runner import Runner
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.text import Text
from octavo_engine.text.pieces import StreamFactory
from tests.core.test_core import ScriptedMailbox
from tests.execution.conftest import loaded_model, loaded_ops
from tests.execution.deferred import DeferredQueue, deferred_runner
from tests.execution.driver import VOCAB

CLIENT = b"client"
Mail = list[list[tuple[bytes, Any]]]
Choice = tuple[str, list[int], list[wire.TokenLogprob], str | None, str | int | None]
Texts = dict[int, list[Choice]]


class Letters:
    """A tokenizer whose token i is a letter, and its stream, which tells only of some ahead."""

    vocab_size = VOCAB
    table: ClassVar[dict[int, str | None]] = {i: chr(0x4E00 + i) if i % 3 else None for i in range(VOCAB)}
    open = False

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) - 0x4E00 for letter in text]

    def stream_factory(self, skip_special_tokens: bool) -> StreamFactory:
        return lambda visible: self

    def feed(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(0x4E00 + token) for token in token_ids)

    def flush(self) -> str:
        return ""

    def token_bytes(self) -> tuple[list[bytes], frozenset[int]]:
        return [letters([token]).encode() for token in range(VOCAB)], frozenset()

    def is_special(self, token_id: int) -> bool:
        return False


class Patient(ScriptedMailbox):
    """Steps begin when the script says so, and it ends when all requests have."""

    def receive(self, timeout: float | None) -> Iterator[tuple[bytes, Any]]:
        if self.script:
            yield from self.script.pop(0)
        elif timeout is None or timeout > 0:
            if self.pending():
                self.woken.wait(20 if timeout is None else timeout)
                self.woken.clear()
            else:
                yield CLIENT, wire.Drain(abort=False)


class Engine:
    def __init__(self, *, overlap: bool, num_pages: int = 40, budget: int = 48, **changes: Any) -> None:
        limits: dict[str, Any] = {"max_num_seqs": 8, "max_model_len": 120, "page_size": 16}
        config = SchedulerConfig(
            num_pages=num_pages, max_num_batched_tokens=budget, max_in_flight=1 + overlap, **limits, **changes
        )
        self.make: Callable[..., Runner] = deferred_runner if overlap else Runner
        self.runner = self.make(
            loaded_model("cpu", torch.float32), loaded_ops("cpu"), num_pages=num_pages, kv_dtype=torch.float32, **limits
        )
        self.scheduler = Scheduler(config)

    @property
    def queue(self) -> DeferredQueue:
        queue: DeferredQueue = self.runner.queue  # type: ignore[attr-defined]
        return queue

    def run(self, script: Mail, text: Text | None = None, **changes: Any) -> ScriptedMailbox:
        text = text or Text(Letters(), eos_token_ids=[2])
        options = EngineOptions(model="m", max_num_batched_tokens=48, max_model_len=120, max_num_seqs=8, **changes)
        ready = wire.Ready(wire.PROTOCOL_VERSION, 1, "0", options, "Test", True, False, VOCAB, 40, (2,))
        mailbox = Patient(script)
        core = Core(mailbox, self.scheduler, self.runner, text, ready, owned=True, clients={CLIENT})  # type: ignore[arg-type]
        mailbox.pending = lambda: core.grammars.num_pending
        self.runner.use_grammars(core.grammars.matcher)
        core.run()
        self.stats = core.stats()
        self.scheduler.check()
        stats = self.scheduler.stats()
        assert stats["kv_pages_free"] == stats["kv_pages_total"]
        return mailbox


def texts(mail: ScriptedMailbox) -> Texts:
    """By request: each choice's text, tokens, logprobs and end."""
    found: dict[tuple[int, int], Choice] = {}
    for message in mail.of(CLIENT, wire.Deltas):
        for delta in message.deltas:
            text, ids, logprobs, _, _ = found.get((delta.request_id, delta.index), ("", [], [], None, None))
            ids, logprobs = [*ids, *delta.token_ids], [*logprobs, *(delta.logprobs or ())]
            ends = delta.finish_reason, delta.stop_reason
            found[delta.request_id, delta.index] = (text + delta.text, ids, logprobs, *ends)
    gathered: Texts = {}
    for (request, _), choice in sorted(found.items()):
        gathered.setdefault(request, []).append(choice)
    return gathered


def ends(mail: ScriptedMailbox) -> list[int]:
    return sorted(end.request_id for kind in (wire.Finished, wire.Failed) for end in mail.of(CLIENT, kind))


def letters(ids: Sequence[int]) -> str:
    return Letters().feed(ids)


def requests(seed: int, count: int) -> list[wire.Generate]:
    """Greedy, seeded, several choices, stop strings and ids, penalties, priorities, prompts that share a beginning."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, VOCAB) for _ in range(20)]
    made = []
    for i in range(count):
        max_tokens = rng.randint(1, 30)
        params = SamplingParams(
            n=rng.choice([1, 1, 2, 3]),
            temperature=rng.choice([0, 0.9, 1.4]),
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, 0, min(4, max_tokens)]),
            repetition_penalty=rng.choice([1, 1, 1, 1.3]),
            seed=rng.getrandbits(40),
            stop=tuple(letters([rng.randrange(VOCAB) for _ in range(n)]) for n in (1, 1, 1, 1, 2)),
            stop_token_ids=tuple(rng.randrange(VOCAB) for _ in range(rng.choice([0, 6]))),
            bad_words=(letters([5, 6]),) if rng.random() < 0.2 else (),
            logprobs=rng.choice([None, None, 2]),
            prompt_logprobs=rng.choice([None, None, 1]),
            priority=rng.choice([0, 0, 1]),
        )
        prompt = shared * (i % 2) + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 60))]
        made.append(wire.Generate(i, params, token_ids=prompt))
    return made


def script_of(generates: list[wire.Generate], seed: int) -> Mail:
    rng = random.Random(seed)
    script: Mail = []
    waiting = list(generates)
    while waiting:
        count = rng.choice([0, 0, 1, 3])
        script.append([(CLIENT, message) for message in waiting[:count]])
        waiting = waiting[count:]
    return script
