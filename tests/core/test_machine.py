"""Which device is taken and why, and what the KV cache gets of its memory; the device is a fake that counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from octavo.options import EngineOptions
from octavo.speculation import Draft
from octavo_engine import machine, start
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.memory import Measured, capture_steps, measure, profile_step
from octavo_engine.machine import Machine, NoRoom
from octavo_engine.ops import OpsUnavailable
from octavo_engine.scheduling.plan import Plan
from tests.execution.conftest import loaded_model, loaded_ops
from tests.execution.driver import tiny_llama
from tests.support.call_graphs import CallGraphs
from tests.support.cuda import emulated_ops

PAGE = 3 * 2 * 16 * 2 * 16 * 4  # layers, heads, tokens, keys and values, head size, bytes


class CountedMemory:
    """1,000 kB, of which `others` hold some; the model takes `weights`, a step `activations`."""

    def __init__(self, others: int = 100_000, weights: int = 200_000, activations: int = 150_000) -> None:
        self.others, self.weights, self.activations = others, weights, activations
        self.loaded = False

    def free(self) -> int:
        return 1_000_000 - self.others - (self.weights if self.loaded else 0)

    def total(self) -> int:
        return 1_000_000

    def peak_of(self, work: Callable[[], None]) -> int:
        work()
        return self.activations


def made(monkeypatch: pytest.MonkeyPatch, memory: CountedMemory | None, asked: str = "cpu") -> Machine:
    monkeypatch.setattr(machine, "load_ops", lambda device, **_: loaded_ops("cpu"))
    monkeypatch.setattr(machine, "profile_step", lambda *_, **__: 0)
    monkeypatch.setattr(machine, "capture_steps", lambda *_, **__: SimpleNamespace(cache=SimpleNamespace(nbytes=0)))
    found = Machine(asked, 1, memory)
    if memory is not None:
        memory.loaded = True
    return found


def cache(found: Machine, **options: Any) -> int:
    asked = EngineOptions(model="m", max_num_seqs=8, **options)
    return found.cache_memory(asked, loaded_model("cpu", torch.float32), torch.float32, PAGE)


def test_what_is_left_is_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    # 900 kB free at the start, 90 % of that to take, 200 of weights, 150 of activations
    assert cache(made(monkeypatch, CountedMemory())) == 460_000
    assert cache(made(monkeypatch, CountedMemory()), gpu_memory_utilization=0.5) == 100_000


def test_no_more_than_all_sequences_could_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache(made(monkeypatch, CountedMemory()), max_model_len=20) == 8 * 2 * PAGE
    assert cache(made(monkeypatch, CountedMemory()), max_model_len=20, kv_cache_memory=450_000) == 450_000


@pytest.mark.parametrize(
    ("memory", "options", "option", "words"),
    [
        ({"weights": 700_000}, {}, False, ["no room for a KV cache", "1 MB free at start", "gpu_memory_utilization"]),
        ({}, {"kv_cache_memory": 500_000}, True, ["kv_cache_memory=500000", "at most", "gpu_memory_utilization"]),
        ({"weights": 600_000}, {"max_model_len": 100}, True, ["max_model_len=100", "at most 64", "kv_cache_dtype"]),
    ],
)
def test_what_does_not_fit_is_told_with_numbers_and_knobs(
    monkeypatch: pytest.MonkeyPatch, memory: dict[str, int], options: dict[str, int], option: bool, words: list[str]
) -> None:
    with pytest.raises(NoRoom) as caught:
        cache(made(monkeypatch, CountedMemory(**memory)), **options)
    assert caught.value.option is option
    for word in words:
        assert word in str(caught.value)


def test_without_a_limit_the_context_is_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache(made(monkeypatch, CountedMemory(weights=600_000))) == 60_000


def test_a_step_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real step, on a model that runs out of memory."""
    model = loaded_model("cpu", torch.float32)

    class Greedy:
        config = model.config
        logits, tables = model.logits, model.tables

        def forward(self, batch: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(machine, "load_ops", lambda device, **_: loaded_ops("reference"))
    found = Machine("cpu", 1, CountedMemory())
    options = EngineOptions(model="m", max_num_seqs=8, max_num_batched_tokens=99)
    with pytest.raises(NoRoom, match="max_num_batched_tokens=99 tokens in max_num_seqs=8 sequences does not fit"):
        found.cache_memory(options, Greedy(), torch.float32, PAGE)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What runners of a device are given."""
    plans: list[Plan] = []
    submit = DeviceRunner.submit

    def seen(self: Any, plan: Plan) -> Any:
        plans.append(plan)
        return submit(self, plan)

    monkeypatch.setattr(DeviceRunner, "submit", seen)
    return plans


@pytest.mark.parametrize(("tokens", "seqs", "length"), [(50, 8, 256), (8, 8, 256), (3, 8, 256), (300, 2, 100)])
def test_the_largest_step_is_that(plans: list[Plan], tokens: int, seqs: int, length: int) -> None:
    sizes = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": length}
    model, ops = loaded_model("cpu", torch.float32), loaded_ops("cpu")
    taken = profile_step(model, ops, page_size=16, kv_dtype=torch.float32, **sizes)
    (plan,) = plans
    assert plan.num_tokens == min(tokens, seqs * length)
    assert sum(len(step.samplers) for step in plan.seqs) == len(plan.seqs) == min(tokens, seqs)
    assert taken == sum(len(step.pages) for step in plan.seqs) * PAGE


@pytest.mark.parametrize(
    ("tokens", "seqs", "guessed", "guesses", "rows"),
    [
        (50, 8, 3, 5, 8 + 3 * 5),
        (50, 8, 100, 5, 8 + 8 * 5),
        (20, 8, 3, 5, 8 + 3 * 4),  # what the budget has room for
        (300, 2, 2, 5, 2 + 2 * 5),
        (8, 8, 3, 5, 8),
    ],
)
def test_every_guess_has_its_logits(
    plans: list[Plan], tokens: int, seqs: int, guessed: int, guesses: int, rows: int
) -> None:
    sizes = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "max_model_len": 256}
    sizes |= {"guesses": guesses, "max_guessed": guessed}
    model, ops = loaded_model("cpu", torch.float32), loaded_ops("cpu")
    profile_step(model, ops, page_size=16, kv_dtype=torch.float32, **sizes)
    (plan,) = plans
    assert plan.num_tokens == tokens
    assert len(plan.seqs) == seqs
    assert sum(step.num_drawn for step in plan.seqs) == rows


def test_the_cache_of_the_largest_step_is_not_its_activations() -> None:
    memory = CountedMemory()
    free = memory.free()
    memory.loaded = True
    capture = partial(captured, memory)
    found = measure(memory, free_at_start=free, utilization=0.5, steps=[lambda: 30_000], captures=[capture])
    assert found == Measured(limit=450_000, taken=200_000, activations=120_000, graphs=40_000)
    assert found.cache == 90_000


def test_a_draft_model_runs_between_the_models_steps() -> None:
    """So the larger step of the two counts; but what they captured lies side by side."""
    memory = CountedMemory()
    free = memory.free()
    memory.loaded = True
    steps: list[Callable[[], int]] = [lambda: 30_000, lambda: 20_000]
    found = measure(memory, free_at_start=free, utilization=0.5, steps=steps, captures=[partial(captured, memory)] * 2)
    assert found == Measured(limit=450_000, taken=200_000, activations=130_000, graphs=80_000)


def test_a_draft_model_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch, CountedMemory())
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr(machine, "profile_step", lambda model, ops, **sizes: asked.append((model, sizes)) or 0)
    drafted: list[Any] = []
    room = SimpleNamespace(cache=SimpleNamespace(nbytes=0))
    monkeypatch.setattr(machine, "capture_steps", lambda model, ops, **sizes: drafted.append(model) or room)
    model, draft = loaded_model("cpu", torch.float32), SimpleNamespace(config=SimpleNamespace(max_position=77))
    draft.config.recordable = True
    options = EngineOptions(model="m", max_num_seqs=8, speculation=Draft("d", num_speculative_tokens=3))
    found.cache_memory(options, model, torch.float32, PAGE, draft)  # type: ignore[arg-type]
    (first, of_model), (second, of_draft) = asked
    assert drafted == [first, second] == [model, draft]
    assert (of_model["guesses"], of_model["max_guessed"]) == (3, 16)
    assert "guesses" not in of_draft
    assert of_draft["max_model_len"] == 77
    assert of_model["max_num_batched_tokens"] == of_draft["max_num_batched_tokens"]


def captured(memory: CountedMemory) -> Any:
    """A runner whose captured steps take 40 kB and its cache 5."""
    memory.others += 45_000
    return SimpleNamespace(cache=SimpleNamespace(nbytes=5_000))


def test_every_step_is_captured_to_be_measured() -> None:
    graphs = CallGraphs()
    ops = emulated_ops(check=False, graphs=graphs)
    sizes = {"page_size": 16, "max_num_seqs": 3, "max_model_len": 64, "kv_dtype": torch.float32}
    runner = capture_steps(tiny_llama(ops, torch.float32), ops, **sizes)
    assert runner.cache.nbytes == PAGE
    assert sorted(graphs.rows) == [1, 2, 3]


def test_a_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(monkeypatch, CountedMemory())
    refused = MemoryError("the system refuses")
    assert "1 MB free at start of 1 MB" in str(found.too_large(refused))
    assert "quantization='int4'" in str(found.too_large(refused))
    assert "cache of 5 MB and the steps captured" in str(found.too_large_beside(5_000_000, refused))
    unmeasured = made(monkeypatch, None)
    for told in (unmeasured.too_large(refused), unmeasured.too_large_beside(1, refused)):
        assert str(told) == "the system refuses"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("no room"), "cache of 5 MB and the steps captured"),
        (torch.OutOfMemoryError("CUDA out of memory"), "cache of 5 MB and the steps captured"),
        (RuntimeError("CUDA error: out of memory"), "cache of 5 MB and the steps captured"),  # of a graph, say
        (RuntimeError("CUDA error: an illegal memory access"), None),
    ],
    ids=str,
)
def test_no_room_beside_the_cache(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str | None) -> None:
    def runner(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(start, "Runner", runner)
    found = made(monkeypatch, CountedMemory())
    network = SimpleNamespace(config=SimpleNamespace(recordable=True))
    loaded: Any = SimpleNamespace(machine=found, network=network, adapters=None)
    options = EngineOptions(model="m", kv_cache_memory=5_000_000, max_num_batched_tokens=64)
    rest: Any = (5, torch.float32, None, None)
    with pytest.raises(start.StartFailed if told else type(error), match=told) as caught:
        start._runners(options, loaded, *rest)
    assert told is None or caught.value.code == "out_of_memory"


@pytest.mark.parametrize("problem", ["torch", "device", "library", None])
def test_auto_takes_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: str | None
) -> None:
    loaded: list[str] = []

    def load(device: str, **_: Any) -> Any:
        loaded.append(device)
        if device == "cuda" and problem == "library":
            raise OpsUnavailable("the CUDA library is missing")
        return loaded_ops("cpu")

    monkeypatch.setattr(machine, "load_ops", load)
    monkeypatch.setattr(torch.version, "cuda", None if problem == "torch" else "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: problem != "device")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fake GPU")
    with caplog.at_level(logging.INFO, "octavo.engine"):
        Machine("auto", 1)
    assert loaded == {"torch": ["cpu"], "device": ["cpu"], "library": ["cuda", "cpu"], None: ["cuda"]}[problem]
    said = {
        "torch": "built without CUDA",
        "device": "finds no CUDA device",
        "library": "the CUDA library is missing",
        None: "Fake GPU",
    }
    assert said[problem] in caplog.text


def test_a_device_that_was_named_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(device: str, **_: Any) -> Any:
        asked.append(device)
        raise OpsUnavailable("0 CUDA devices were found")

    monkeypatch.setattr(machine, "load_ops", load)
    for device in ("cuda", "cuda:3"):
        with pytest.raises(OpsUnavailable, match="0 CUDA devices"):
            Machine(device, 1)
    assert asked == ["cuda", "cuda:3"]
