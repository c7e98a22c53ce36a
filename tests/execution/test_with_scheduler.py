"""The real scheduler drives the runner through memory pressure; each choice still gets what it gets alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from octavo.options import SamplingParams
from octavo.wire import TokenLogprob
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.processors import Processors
from octavo_engine.execution.runner import Runner, StepResult
from octavo_engine.layers.lora import Adapters
from octavo_engine.models.base import CausalLM
from octavo_engine.scheduling.plan import Plan
from octavo_engine.scheduling.scheduler import Scheduler, SchedulerConfig
from octavo_engine.scheduling.sequence import Request, Sequence
from octavo_engine.scheduling.speculation import Proposer
from octavo_engine.steps import Steps
from tests.execution.conftest import loaded_model, loaded_ops
from tests.execution.deferred import DeferredQueue, deferred_runner
from tests.execution.driver import VOCAB

Key = tuple[int, int]
Outputs = dict[Key, tuple[list[int], list[TokenLogprob | None]]]
PromptLogprobs = dict[int, list[TokenLogprob]]


class Setup(NamedTuple):
    """quantization: as in EngineOptions. scaling: of the rotation, see RandomSource."""

    ops: str
    dtype: torch.dtype
    kv_dtype: torch.dtype
    quantization: str | None = None
    scaling: str = "default"


SCHEMES = [
    "int4",
    "int4:symmetric,float,lm_head",
    "int4:g128",
    "int8",
    "int8:float,no_lm_head",
    "llm_int8:threshold=1.5",
]


def requests(count: int) -> list[Request]:
    """Half of them begin with the same 40 tokens."""
    rng = random.Random(2)
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    made = []
    for i in range(count):
        params = SamplingParams(
            n=rng.choice([1, 1, 2, 3]),
            temperature=rng.choice([0, 0.8, 1.3]),
            max_tokens=rng.randint(1, 40),
            top_p=rng.choice([1, 0.9]),
            repetition_penalty=rng.choice([1, 1.2]),
            priority=rng.choice([0, 0, 1]),
            logprobs=rng.choice([0, 2]),
            prompt_logprobs=rng.choice([None, None, 1]),
            ignore_eos=True,
        )
        prompt = shared * (i % 2) + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 50))]
        made.append(Request(i, prompt, params, frozenset(), rng.getrandbits(63), float(i)))
    return made


class Engine:
    """What core does, without text and messages."""

    def __init__(
        self,
        setup: Setup,
        num_pages: int,
        budget: int,
        *,
        caching: bool,
        overlap: bool = False,
        make_proposer: Callable[..., Proposer] | None = None,
        processors: Processors | None = None,
        model: CausalLM | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """model: of the setup's ops; None: loaded_model."""
        sizes: dict[str, Any] = {"num_pages": num_pages, "page_size": 16, "max_num_seqs": 24, "max_model_len": 160}
        make = deferred_runner if overlap else Runner
        model = model or loaded_model(setup.ops, setup.dtype, setup.quantization, setup.scaling)
        users = {"processors": processors, "adapters": adapters}
        self.runner = make(model, loaded_ops(setup.ops), **sizes, **users, kv_dtype=setup.kv_dtype)
        limits: dict[str, Any] = {
            "max_num_batched_tokens": budget,
            "enable_prefix_caching": caching,
            "max_in_flight": 1 + overlap,
            "regimes": model.config.regimes and model.config.regimes._replace(growth=0.15),
        }
        proposer = None if make_proposer is None else make_proposer(**sizes, kv_dtype=setup.kv_dtype)
        self.scheduler = Scheduler(SchedulerConfig(**sizes, **limits), proposer=proposer)
        self.steps = Steps(self.scheduler, self.runner, self.fail)
        self.outputs: Outputs = {}
        self.prompt_logprobs: PromptLogprobs = {}
        self.vectors: dict[int, torch.Tensor] = {}

    def step(self) -> None:
        for plan, result in self.steps.advance(self.scheduler.schedule()):
            self._commit(plan, result)

    def fail(self, sequence: Sequence, error: Exception) -> None:
        raise error

    def _commit(self, plan: Plan, result: StepResult) -> None:
        for slot, entries in result.prompt_logprobs.items():
            key = self.scheduler.sequence_at(slot).request.key
            assert isinstance(key, int)
            self.prompt_logprobs.setdefault(key, []).extend(entries)
        for slot, vector in result.vectors.items():
            key = self.scheduler.sequence_at(slot).request.key
            assert isinstance(key, int)
            self.vectors[key] = vector
        advanced = self.scheduler.commit(plan, result.tokens, result.logprobs)
        for sequence, token, logprob in zip(advanced, result.tokens, result.logprobs, strict=True):
            if sequence is None:
                continue
            key = sequence.request.key
            assert isinstance(key, int)
            tokens, logprobs = self.outputs.setdefault((key, sequence.index), ([], []))
            tokens.append(token)
            logprobs.append(logprob)
        self.scheduler.check()


@pytest.mark.parametrize(
    "setup",
    [
        Setup("reference", torch.float32, torch.float32),
        Setup("cpu", torch.float32, torch.float32),
        Setup("cpu", torch.bfloat16, torch.bfloat16),
        Setup("cpu", torch.bfloat16, torch.int8),
        Setup("cpu", torch.float32, torch.float32, scaling="dynamic"),
        *[Setup("cpu", torch.bfloat16, torch.bfloat16, scheme) for scheme in SCHEMES],
    ],
    ids=["reference", "cpu-float32", "cpu-bfloat16", "cpu-int8-cache", "dynamic", *SCHEMES],
)
def test_under_memory_pressure(setup: Setup) -> None:
    check_under_memory_pressure(setup, overlap=False)


@pytest.mark.parametrize(
    "setup",
    [
        Setup("reference", torch.float32, torch.float32),
        Setup("cpu", torch.float32, torch.float32),
        Setup("cpu", torch.bfloat16, torch.int8),
        Setup("cpu", torch.float32, torch.float32, scaling="dynamic"),
    ],
    ids=["reference", "cpu-float32", "cpu-int8-cache", "dynamic"],
)
def test_overlapped_under_memory_pressure(setup: Setup) -> None:
    check_under_memory_pressure(setup, overlap=True)


def check_under_memory_pressure(setup: Setup, *, overlap: bool) -> None:
    count = 20 if setup.ops == "cpu" else 12
    alone = Engine(setup, num_pages=200, budget=160, caching=False)
    for request in requests(count):
        alone.scheduler.add(request)
        while alone.scheduler.has_work:
            alone.step()

    crowded = Engine(setup, num_pages=21, budget=37, caching=True, overlap=overlap)
    rng = random.Random(1)
    waiting = requests(count)
    while waiting or crowded.scheduler.has_work:
        for _ in range(min(len(waiting), rng.choice([0, 0, 1, 4]))):
            crowded.scheduler.add(waiting.pop(0))
        crowded.step()
    while crowded.steps.in_flight:
        crowded.step()
    stats = crowded.scheduler.stats()
    assert stats["kv_pages_free"] == 21
    assert stats["num_preemptions"] > 3
    if isinstance(crowded.runner, DeviceRunner):
        assert isinstance(crowded.runner.queue, DeferredQueue)
        assert crowded.runner.queue.most == 2
    assert crowded.outputs.keys() == alone.outputs.keys()
    for key, (tokens, logprobs) in crowded.outputs.items():
        assert tokens == alone.outputs[key][0], key
        if setup.ops == "cpu":
            assert logprobs == alone.outputs[key][1], key
    if setup.ops == "cpu":
        assert crowded.prompt_logprobs == alone.prompt_logprobs
    assert crowded.prompt_logprobs.keys() == alone.prompt_logprobs.keys()
    for request in requests(count):
        if request.params.prompt_logprobs is not None:
            assert isinstance(request.key, int)
            entries = crowded.prompt_logprobs.get(request.key, [])
            assert [entry.token_id for entry in entries] == request.prompt[1:]


def reads() -> list[Request]:
    """Embeddings and scores; their prompts begin as those of half of `requests`."""
    rng = random.Random(2)
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    made = []
    for key in range(100, 118):
        prompt = shared[: rng.randint(1, 40)] + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 110))]
        pooling = ("mean", "last", "")[key % 3]
        params = SamplingParams(prompt_logprobs=None if pooling else 1)
        scored = 0 if pooling else rng.randrange(len(prompt) - 1)
        request = Request(key, prompt, params, frozenset(), 0, 0.0, draws=False, pooling=pooling, prompt_scored=scored)
        made.append(request)
    return made


@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_read_depends_on_the_prompt_alone(overlap: bool) -> None:
    """Embeddings and scores among requests that draw: chunked, batched, preempted, found in the cache; to the bit."""
    setup = Setup("cpu", torch.bfloat16, torch.bfloat16)
    alone = Engine(setup, num_pages=200, budget=160, caching=False)
    for request in reads():
        alone.scheduler.add(request)
        while alone.scheduler.has_work:
            alone.step()
    crowded = Engine(setup, num_pages=14, budget=23, caching=True, overlap=overlap)
    for pair in zip(reads(), requests(20), strict=False):
        for request in pair:
            crowded.scheduler.add(request)
    while crowded.scheduler.has_work or crowded.steps.in_flight:
        crowded.step()
    stats = crowded.scheduler.stats()
    assert stats["kv_pages_free"] == 14
    assert stats["num_preemptions"] > 3
    assert stats["prefix_cache_hits"] > 0
    assert crowded.vectors.keys() == alone.vectors.keys() == {key for key in range(100, 118) if key % 3 != 2}
    for key, vector in alone.vectors.items():
        assert torch.equal(crowded.vectors[key], vector), key
    for request in reads():
        if not request.pooling:
            entries = crowded.prompt_logprobs[int(str(request.key))]
            assert entries == alone.prompt_logprobs[int(str(request.key))]
            assert [entry.token_id for entry in entries] == request.prompt[request.prompt_scored + 1 :]
