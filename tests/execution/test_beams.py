"""Beams through the runners: what a search finds does not depend on what else runs, nor on a step being run ahead."""

from __future__ import annotations

import random

import pytest
import torch

from octavo.options import SamplingParams
from octavo_engine.scheduling.beam_search import BeamSearch
from octavo_engine.scheduling.sequence import Request
from tests.execution.driver import VOCAB
from tests.execution.test_with_scheduler import Engine, Setup, requests

Texts = list[tuple[list[int], float]]


def searches(count: int) -> list[Request]:
    rng, made = random.Random(3), []
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    for i in range(count):
        width, ends = rng.choice([2, 3, 5]), frozenset(range(rng.choice([0, 8])))
        search = BeamSearch(
            width,
            ends=ends,
            max_tokens=1,
            length_penalty=rng.choice([0.5, 1.0, 2.0]),
            early_stopping=rng.choice([True, False, "never"]),
        )
        top = BeamSearch.num_top(width, len(ends))
        params = SamplingParams(temperature=0, max_tokens=rng.randint(4, 30), logprobs=top, ignore_eos=True)
        prompt = shared * (i % 2) + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
        made.append(Request(100 + i, prompt, params, frozenset(), 0, 0.0, search=search))
    return made


def found(made: list[Request]) -> list[Texts]:
    """Tokens and scores, to the bit."""
    texts = []
    for request in made:
        assert request.search is not None
        assert request.search.done
        texts.append([([step.token for step in text.steps], text.score) for text in request.search.finished])
    return texts


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
def test_crowded_beams_find_what_they_find_alone(overlap: bool, kv_dtype: torch.dtype) -> None:
    setup = Setup("cpu", torch.float32, kv_dtype)
    alone, one_by_one = Engine(setup, num_pages=200, budget=160, caching=False), searches(8)
    for request in one_by_one:
        alone.scheduler.add(request)
        while alone.scheduler.has_work:
            alone.step()

    crowded, at_once = Engine(setup, num_pages=13, budget=29, caching=True, overlap=overlap), searches(8)
    for request in [*at_once, *requests(6)]:
        crowded.scheduler.add(request)
        crowded.step()
    while crowded.scheduler.has_work or crowded.steps.in_flight:
        crowded.step()
    assert found(at_once) == found(one_by_one)
    assert crowded.scheduler.stats()["num_preemptions"] > 5
    assert crowded.scheduler.stats()["kv_pages_free"] == 13
