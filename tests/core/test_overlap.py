"""The whole loop around a real model, one step ahead or in turn: the same texts and ends, nothing left behind."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import wire
from octavo.beams import BeamParams
from octavo.options import SamplingParams
from octavo_engine import serve
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.errors import DeviceLost
from octavo_engine.scheduling.ngram import NGramProposer
from octavo_engine.scheduling.plan import SeqStart
from octavo_engine.scheduling.scheduler import Scheduler
from octavo_engine.serve import last_words
from tests.core.loop import CLIENT, Engine, Mail, ends, letters, requests, script_of, texts
from tests.core.test_core import ScriptedMailbox


@pytest.mark.parametrize("num_pages", [40, 11], ids=["room", "preemption"])
def test_texts_are_the_same(num_pages: int) -> None:
    generates = requests(1, 24)
    mails, preempted = [], []
    for overlap in (False, True):
        engine = Engine(overlap=overlap, num_pages=num_pages)
        mails.append(engine.run(script_of(generates, 2)))
        preempted.append(engine.scheduler.stats()["num_preemptions"])
        if overlap:
            assert engine.queue.most == 2
    in_turn, ahead = mails
    assert texts(in_turn) == texts(ahead)
    assert ends(in_turn) == ends(ahead) == list(range(24))
    reasons = {(choice[3], isinstance(choice[4], str)) for request in texts(ahead).values() for choice in request}
    assert reasons >= {("length", False), ("stop", False), ("stop", True)}  # the load was of the kind this is about
    assert (min(preempted) > 0) == (num_pages == 11)
    for kept in ("prompt_logprobs", "choices", "prompt_token_ids"):
        a, b = (sorted((f.request_id, getattr(f, kept)) for f in mail.of(CLIENT, wire.Finished)) for mail in mails)
        assert a == b


@pytest.mark.parametrize("seed", range(4))
def test_aborts_end_once_and_disturb_nobody(seed: int) -> None:
    generates = requests(seed, 16)
    alone = texts(Engine(overlap=False).run([[(CLIENT, generate) for generate in generates]]))
    rng = random.Random(seed)
    script = [*script_of(generates, seed), *([] for _ in range(20))]
    aborted = rng.sample(range(16), 6)
    for request in aborted:
        rng.choice(script).append((CLIENT, wire.Abort([request])))
    mail = Engine(overlap=True, num_pages=14).run(script)
    assert ends(mail) == list(range(16))
    for request, choices in texts(mail).items():
        for found, whole in zip(choices, alone[request], strict=False):
            if request in aborted:
                assert whole[1][: len(found[1])] == found[1]
            else:
                assert found == whole


def test_a_drain_ends_what_is_in_flight() -> None:
    endless = SamplingParams(temperature=0, ignore_eos=True)
    script: Mail = [[(CLIENT, wire.Generate(i, endless, token_ids=[i + 3])) for i in range(3)], [], [], []]
    engine = Engine(overlap=True)
    mail = engine.run([*script, [(CLIENT, wire.Drain(abort=True))]])
    assert ends(mail) == [0, 1, 2]
    assert not engine.scheduler.in_flight
    assert mail.of(CLIENT, wire.Dying)[0].code == "drained"


def before_forward(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, hook: Callable[[tuple[torch.Tensor, ...]], None]
) -> None:
    """hook(inputs) may raise; for every row or for those that are kept."""

    def with_hook(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*tensors: torch.Tensor) -> torch.Tensor:
            hook(tensors)
            return forward(*tensors)

        return call

    for name in ("_forward", "_forward_kept"):
        monkeypatch.setattr(engine.runner, name, with_hook(getattr(engine.runner, name)))
    if isinstance(engine.runner, DeviceRunner):
        monkeypatch.setattr(engine.runner, "_decodes", [with_hook(decode) for decode in engine.runner._decodes])


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_step_that_fails_now_and_then_changes_no_text(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Whole steps fail, the one behind them runs on what they did not draw, and both run again."""
    generates = requests(5, 12)
    expected = texts(Engine(overlap=False).run(script_of(generates, 1)))
    engine = Engine(overlap=True, num_pages=14)
    steps = iter(range(1 << 30))

    def broken(tensors: tuple[torch.Tensor, ...]) -> None:
        if len(tensors[4]) > 1 and next(steps) % every == every - 1:  # one alone never fails: it would be its fault
            raise RuntimeError("now and then")

    before_forward(monkeypatch, engine, broken)
    mail = engine.run(script_of(generates, 1))
    assert not mail.of(CLIENT, wire.Failed)
    assert texts(mail) == expected
    assert next(steps) > 2 * every


def test_a_request_that_leaves_no_token_fails_alone() -> None:
    generates = requests(6, 8)
    expected = texts(Engine(overlap=False).run([[(CLIENT, generate) for generate in generates]]))
    nothing = SamplingParams(allowed_token_ids=(7,), logit_bias={7: -100.0}, bad_words=(letters([7]),))
    mail = Engine(overlap=True).run(
        [[(CLIENT, generate) for generate in generates], [(CLIENT, wire.Generate(99, nothing, token_ids=[1, 2]))]]
    )
    (failed,) = mail.of(CLIENT, wire.Failed)
    assert (failed.request_id, failed.code) == (99, "failed")
    assert "no token can be drawn" in failed.message
    assert texts(mail) == expected


@pytest.mark.parametrize("overlap", [False, True])
def test_beams_that_take_freed_slots_in_a_step_that_fails(overlap: bool) -> None:
    """All slots but one become free in the step in which the request in that one can't go on: two of them are taken by
    beams, of which one draws, and the step runs again."""
    beam = BeamParams(beam_width=2, max_tokens=6, ignore_eos=True)
    search = wire.Generate(99, beam.sampling(), token_ids=[8, 9, 10], beam=beam)
    expected = texts(Engine(overlap=False).run([[(CLIENT, search)]]))
    short = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    for lives in (2, 3, 4):  # tokens that the failing one draws before: one step ahead it fails later
        word = letters([7] * lives)
        nothing = SamplingParams(allowed_token_ids=(7,), bad_words=(word,), max_tokens=20, ignore_eos=True)
        crowd = [wire.Generate(i, short, token_ids=[i + 3]) for i in range(7)]
        everybody = [wire.Generate(50, nothing, token_ids=[1, 2]), *crowd, search]
        mail = Engine(overlap=overlap).run([[(CLIENT, generate) for generate in everybody]])
        assert [failed.request_id for failed in mail.of(CLIENT, wire.Failed)] == [50]
        assert texts(mail)[99] == expected[99]


def test_out_of_memory_is_typed_when_a_request_alone_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(overlap=True)

    def small(tensors: tuple[torch.Tensor, ...]) -> None:
        if len(tensors[0]) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    before_forward(monkeypatch, engine, small)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    long, short = (wire.Generate(i, params, token_ids=[5] * n) for i, n in enumerate((40, 9)))
    mail = engine.run([[(CLIENT, long), (CLIENT, short)]])
    (failed,) = mail.of(CLIENT, wire.Failed)
    assert (failed.request_id, failed.code) == (0, "out_of_memory")
    assert "max_num_batched_tokens" in failed.message
    assert "0 MB free of 1 MB" in failed.message
    assert len(texts(mail)[1][0][1]) == 5


def test_a_lost_device_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(overlap=True)
    runs = iter(range(100))

    def lost(tensors: tuple[torch.Tensor, ...]) -> None:
        engine.queue.lost = next(runs) == 3

    before_forward(monkeypatch, engine, lost)
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    with pytest.raises(DeviceLost, match="unspecified launch failure") as caught:
        engine.run([[(CLIENT, wire.Generate(1, params, token_ids=[5]))]])
    assert last_words(caught.value) == wire.Dying("device_lost", str(caught.value))
    assert last_words(KeyError("x")).code == "internal"


def test_memory_that_is_back_at_the_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step was too much, its sequences one by one are not: nobody fails."""
    engine = Engine(overlap=True)
    runs = iter(range(100))

    def small(tensors: tuple[torch.Tensor, ...]) -> None:
        if next(runs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    before_forward(monkeypatch, engine, small)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    mail = engine.run([[(CLIENT, wire.Generate(i, params, token_ids=[5, i])) for i in range(3)]])
    assert ends(mail) == [0, 1, 2]
    assert not mail.of(CLIENT, wire.Failed)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_score_of_nothing_ends(overlap: bool) -> None:
    params = SamplingParams(prompt_logprobs=0)
    asked = [
        wire.Generate(1, params, token_ids=[5], task=wire.Score(0)),
        wire.Generate(2, params, token_ids=[5, 6, 7], task=wire.Score(2)),
    ]
    mail = Engine(overlap=overlap).run([[(CLIENT, generate) for generate in asked]])
    assert [done.choices[0].finish_reason for done in mail.of(CLIENT, wire.Finished)] == ["stop", "stop"]


@pytest.mark.parametrize("overlap", [False, True])
def test_more_guesses_than_sequences(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may draw more tokens than there are slots."""
    engine = Engine(overlap=overlap)
    engine.scheduler = Scheduler(engine.scheduler.config, proposer=NGramProposer(8, 1, 2, 16))
    assert engine.scheduler.speculation is not None
    monkeypatch.setattr(engine.scheduler.speculation, "length", lambda waiting, rows: 8)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    prompts = [[5, 6, 5, 6, 5, 6, 5, 6, 5 + i] for i in (1, 2)]
    mail = engine.run([[(CLIENT, wire.Generate(i, params, token_ids=prompt)) for i, prompt in enumerate(prompts)]])
    assert ends(mail) == [0, 1]
    assert not mail.of(CLIENT, wire.Failed)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_start_that_fails_is_the_fault_of_its_own_request(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(overlap=overlap)
    start = engine.runner._sampler.start

    def failing(begun: SeqStart) -> None:
        if begun.params.seed == 13:
            raise RuntimeError("as asked")
        start(begun)

    monkeypatch.setattr(engine.runner._sampler, "start", failing)
    asked = [SamplingParams(max_tokens=5, ignore_eos=True, seed=seed) for seed in (11, 12, 13, 14)]
    mail = engine.run([[(CLIENT, wire.Generate(i, params, token_ids=[5, i])) for i, params in enumerate(asked)]])
    assert [failed.request_id for failed in mail.of(CLIENT, wire.Failed)] == [2]
    assert texts(mail) == {i: text for i, text in texts(fresh(asked, overlap)).items() if i != 2}


def fresh(asked: Sequence[SamplingParams], overlap: bool) -> ScriptedMailbox:
    return Engine(overlap=overlap).run(
        [[(CLIENT, wire.Generate(i, params, token_ids=[5, i])) for i, params in enumerate(asked)]]
    )


def test_what_a_lost_device_leaves_is_not_freed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch would end the process for it, before the clients are told."""

    class Held:
        pass

    class Broken:
        def __init__(self) -> None:
            self.held = Held()

        def run(self) -> None:
            step = Held()
            left.extend((weakref.ref(step), weakref.ref(self.held)))
            raise DeviceLost("cuda:0 was lost")

    left: list[Any] = []
    monkeypatch.setattr(serve, "_left", [])
    monkeypatch.setattr(serve, "_start", lambda *_, **__: Broken())
    monkeypatch.setattr(serve, "_obey_signals", lambda *_: None)
    assert serve.serve(f"ipc://{tmp_path}/engine", "{}", model="m", spawned=False) == 1
    gc.collect()
    assert len(left) == 2
    assert all(ref() is not None for ref in left)
