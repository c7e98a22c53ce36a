from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.options import SamplingParams
from octavo_engine.execution.adjustments import Adjustments
from octavo_engine.scheduling.plan import SeqStart

VOCAB = 6  # small, so that repeats and tails happen
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)
params = st.builds(
    SamplingParams,
    presence_penalty=st.sampled_from([0.0, 0.5, -1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=3),
    min_tokens=st.integers(0, 6),
)
bad_words = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), max_size=3)


def dense(start: SeqStart, output: list[int]) -> tuple[list[float], list[float]]:
    """scale and add of every token, from the definitions."""
    p, history = start.params, start.prompt + output
    scale, add = [], []
    for token in range(VOCAB):
        scale.append(p.repetition_penalty if token in history else 1.0)
        value = p.logit_bias.get(token, 0.0)
        if token in output:
            value -= p.presence_penalty + p.frequency_penalty * output.count(token)
        if len(output) < p.min_tokens and token in start.eos_ids:
            value = -math.inf
        for *before, last in start.bad_words:
            if token == last and history[len(history) - len(before) :] == before:
                value = -math.inf
        add.append(value)
    return scale, add


def check(adjustments: Adjustments, start: SeqStart, output: list[int]) -> None:
    scale, add = dense(start, output)
    ids = adjustments.ids[: adjustments.size].tolist()
    assert len(set(ids)) == len(ids)  # each at most once
    for token in range(VOCAB):
        at = ids.index(token) if token in ids else None
        assert np.float32(scale[token]) == (1 if at is None else adjustments.scale[at])
        assert np.float32(add[token]) == (0 if at is None else adjustments.add[at])


@settings(max_examples=300)
@given(params, tokens, tokens, tokens, tokens, bad_words)
def test_entries_are_those_of_the_history(
    params: SamplingParams,
    prompt: list[int],
    resumed: list[int],
    drawn: list[int],
    eos_ids: list[int],
    bad_words: list[list[int]],
) -> None:
    start = SeqStart(0, params, 0, prompt, resumed, eos_ids, bad_words)
    if not Adjustments.needed(start):
        for n in range(len(drawn) + 1):
            assert dense(start, resumed + drawn[:n]) == ([1.0] * VOCAB, [0.0] * VOCAB)
        return
    adjustments = Adjustments(start)
    check(adjustments, start, list(resumed))
    output = list(resumed)
    for token in drawn:
        adjustments.push(token)
        output.append(token)
        check(adjustments, start, output)


def test_arrays_grow_with_the_output() -> None:
    start = SeqStart(0, SamplingParams(presence_penalty=1.0, repetition_penalty=2.0), 0, [0, 1], [])
    adjustments = Adjustments(start)
    for token in range(1000):
        adjustments.push(token)
    assert adjustments.ids[: adjustments.size].tolist() == list(range(1000))
    assert set(adjustments.add[: adjustments.size].tolist()) == {-1.0}
    assert set(adjustments.scale[: adjustments.size].tolist()) == {2.0}
