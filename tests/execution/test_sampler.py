"""Every sampling parameter against a plain reimplementation that looks at one row and its whole history."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo.options import SamplingParams
from octavo_engine.execution.sampler import NothingAllowed, Sampler
from octavo_engine.ops import Ops
from octavo_engine.scheduling.plan import SeqStart

VOCAB = 75  # not a multiple of 32: the last mask word is cut
EOS = [3, 70]
WORDS = [[11], [5, 6], [8, 9, 10]]


def philox4x32_10(key: int, counter: int) -> int:
    """Word 0 (Salmon et al., SC 2011)."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    c = [counter & 0xFFFFFFFF, counter >> 32 & 0xFFFFFFFF, 0, 0]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[0]


def naive_draw(logits: NDArray[np.float32], start: SeqStart, output: list[int]) -> int:
    p, history = start.params, start.prompt + output
    row = logits.astype(np.float64)
    for token in set(history):
        row[token] = row[token] / p.repetition_penalty if row[token] > 0 else row[token] * p.repetition_penalty
    for token in set(output):
        row[token] -= p.presence_penalty + p.frequency_penalty * output.count(token)
    for token, bias in p.logit_bias.items():
        row[token] += bias
    if len(output) < p.min_tokens:
        row[start.eos_ids] = -math.inf
    for *before, last in start.bad_words:
        if history[len(history) - len(before) :] == before:
            row[last] = -math.inf
    if p.allowed_token_ids is not None:
        row[[token for token in range(VOCAB) if token not in p.allowed_token_ids]] = -math.inf
    if p.temperature == 0:
        return int(row.argmax())
    weights = np.exp((row - row.max()) / p.temperature)
    weights[weights < p.min_p * weights.max()] = 0
    order = np.argsort(-weights, kind="stable")
    if p.top_k:
        weights[order[p.top_k :]] = 0
    mass = np.cumsum(weights[order]) / weights.sum()
    if p.top_p < 1:
        weights[order[int((mass < p.top_p).sum()) + 1 :]] = 0
    cdf = np.cumsum(weights) / weights.sum()
    return int((cdf <= (philox4x32_10(start.seed, len(output)) >> 8) / 2**24).sum())


CASES = {
    "greedy": SamplingParams(temperature=0),
    "plain": SamplingParams(),
    "cold": SamplingParams(temperature=0.4),
    "hot": SamplingParams(temperature=3.0),
    "top_k": SamplingParams(top_k=4),
    "top_k_beyond_vocabulary": SamplingParams(top_k=10**6),
    "top_p": SamplingParams(top_p=0.7),
    "min_p": SamplingParams(min_p=0.2),
    "all_filters": SamplingParams(top_k=20, top_p=0.9, min_p=0.02, temperature=1.5),
    "presence": SamplingParams(presence_penalty=2.0, temperature=0.5),
    "frequency": SamplingParams(frequency_penalty=1.5, temperature=0),
    "negative_frequency": SamplingParams(frequency_penalty=-1.0, temperature=0.5),
    "repetition": SamplingParams(repetition_penalty=1.8, temperature=0),
    "repetition_below_one": SamplingParams(repetition_penalty=0.6),
    "bias": SamplingParams(logit_bias={7: 4.0, 74: -100.0, 0: 2.5}),
    "allowed": SamplingParams(allowed_token_ids=(0, 31, 32, 33, 64, 74)),
    "min_tokens": SamplingParams(min_tokens=6, logit_bias={3: 3.0}, max_tokens=50),
    "everything": SamplingParams(
        temperature=0.8,
        top_k=30,
        top_p=0.95,
        min_p=0.01,
        presence_penalty=0.5,
        frequency_penalty=0.4,
        repetition_penalty=1.2,
        logit_bias={3: 2.0, 20: -2.0, 5: 3.0, 6: 3.0},
        min_tokens=4,
        allowed_token_ids=(*range(1, 75, 2), 6, 8, 10, 20),
        logprobs=3,
    ),
}


def logits_of(case: int, position: int) -> NDArray[np.float32]:
    """The same logits whenever a case comes to a position."""
    return np.random.default_rng([case, position]).normal(0, 2, VOCAB).astype(np.float32)


def start_of(name: str, slot: int, output: list[int] | None = None) -> SeqStart:
    case = list(CASES).index(name)
    rng = random.Random(case)
    prompt = [rng.randrange(VOCAB) for _ in range(case)] + [5, 8, 9]
    seed = rng.getrandbits(64) - 2**63
    words = WORDS if name in ("everything", "plain", "greedy") else []
    return SeqStart(slot, CASES[name], seed, prompt, output or [], EOS, words)


def expected(name: str, length: int) -> list[int]:
    start, output = start_of(name, 0), list[int]()
    for position in range(length):
        output.append(naive_draw(logits_of(list(CASES).index(name), position), start, output))
    return output


def run(sampler: Sampler, slots: dict[str, int], outputs: dict[str, list[int]], names: list[str]) -> list[Any]:
    rows = [logits_of(list(CASES).index(name), len(outputs[name])) for name in names]
    asked = [slots[name] for name in names]
    tokens, logprobs = sampler.draw(torch.from_numpy(np.stack(rows)), asked)
    sampler.commit(asked, tokens)
    for name, token in zip(names, tokens, strict=True):
        outputs[name].append(token)
    return logprobs


@pytest.mark.parametrize("name", CASES)
def test_alone(ops: Ops, name: str) -> None:
    sampler = Sampler(ops, max_num_seqs=4, vocab_size=VOCAB)
    sampler.start(start_of(name, 2))
    outputs: dict[str, list[int]] = {name: []}
    for _ in range(14):
        run(sampler, {name: 2}, outputs, [name])
    assert outputs[name] == expected(name, 14)


def test_in_random_batches_with_preemption(ops: Ops) -> None:
    """Each choice of neighbours, slot and resumption gives what the sequence draws alone."""
    rng = random.Random(5)
    sampler = Sampler(ops, max_num_seqs=40, vocab_size=VOCAB)
    free = rng.sample(range(40), 40)
    slots: dict[str, int] = {}
    outputs: dict[str, list[int]] = {name: [] for name in CASES}
    for _ in range(40):
        for name in CASES:
            if name not in slots:
                slots[name] = free.pop()
                sampler.start(start_of(name, slots[name], list(outputs[name])))
            elif rng.random() < 0.15:
                sampler.end(slots[name])
                free.insert(rng.randrange(len(free)), slots.pop(name))
        names = [name for name in slots if len(outputs[name]) < 14]
        if names:
            run(sampler, slots, outputs, rng.sample(names, rng.randint(1, len(names))))
    for name in CASES:
        assert outputs[name] == expected(name, len(outputs[name]))
        assert len(outputs[name]) >= 8


def test_a_slot_forgets_its_last_owner(ops: Ops) -> None:
    sampler = Sampler(ops, max_num_seqs=1, vocab_size=VOCAB)
    for name in ("everything", "greedy", "allowed", "plain", "repetition", "cold"):
        sampler.start(start_of(name, 0))
        outputs: dict[str, list[int]] = {name: []}
        for _ in range(5):
            (entry,) = run(sampler, {name: 0}, outputs, [name])
            assert (entry is not None) == (name == "everything")
        assert outputs[name] == expected(name, 5)
        sampler.end(0)


def test_draw_changes_nothing_until_commit(ops: Ops) -> None:
    sampler = Sampler(ops, max_num_seqs=1, vocab_size=VOCAB)
    sampler.start(start_of("everything", 0))
    logits = torch.from_numpy(logits_of(0, 0))[None]
    first = sampler.draw(logits, [0])
    assert sampler.draw(logits, [0]) == first
    sampler.commit([0], first[0])
    again = [sampler.draw(logits, [0])[0][0] for _ in range(2)]
    assert again[0] == again[1]


def test_min_tokens_forbids_the_ends_until_then(ops: Ops) -> None:
    params = SamplingParams(temperature=0, min_tokens=3, max_tokens=9)
    sampler = Sampler(ops, max_num_seqs=1, vocab_size=VOCAB)
    sampler.start(SeqStart(0, params, 0, [1], [], EOS))
    row = np.zeros(VOCAB, np.float32)
    row[EOS], row[40] = 5, 1
    drawn = []
    for _ in range(5):
        tokens, _ = sampler.draw(torch.from_numpy(row)[None], [0])
        sampler.commit([0], tokens)
        drawn += tokens
    assert drawn == [40, 40, 40, 3, 3]


def test_seeds_and_choices_differ(ops: Ops) -> None:
    sampler = Sampler(ops, max_num_seqs=8, vocab_size=VOCAB)
    for slot in range(8):
        sampler.start(SeqStart(slot, SamplingParams(), slot // 2, [1], []))
    logits = torch.zeros(8, VOCAB)
    outputs: list[list[int]] = [[] for _ in range(8)]
    for _ in range(6):
        tokens, _ = sampler.draw(logits, list(range(8)))
        sampler.commit(list(range(8)), tokens)
        for output, token in zip(outputs, tokens, strict=True):
            output.append(token)
    assert outputs[0::2] == outputs[1::2]  # the same seed, the same tokens
    assert len({tuple(output) for output in outputs}) == 4


def test_logprobs_are_of_the_models_own_logits(ops: Ops) -> None:
    """Only for who asks, each with as many as it asked for; penalties and filters leave them alone."""
    sampler = Sampler(ops, max_num_seqs=4, vocab_size=VOCAB)
    wanted = [None, 0, 5, VOCAB + 10]
    for slot, top in enumerate(wanted):
        params = SamplingParams(logprobs=top, temperature=0.3, presence_penalty=1, logit_bias={4: 50.0})
        sampler.start(SeqStart(slot, params, 9, [1, 2], [4]))
    logits = np.stack([logits_of(slot, 0) for slot in range(4)])
    tokens, entries = sampler.draw(torch.from_numpy(logits), [0, 1, 2, 3])
    assert entries[0] is None
    for row, token, entry, top in zip(logits[1:], tokens[1:], entries[1:], (0, 5, VOCAB), strict=True):
        reference = torch.from_numpy(row).log_softmax(0)
        best = reference.argsort(descending=True)[:top]
        assert entry is not None
        assert entry.token_id == token == 4
        assert entry.logprob == pytest.approx(reference[4].item(), abs=1e-5)
        assert entry.rank == 1 + int((reference > reference[4]).sum())
        assert [i for i, _ in entry.top] == best.tolist()
        assert [v for _, v in entry.top] == pytest.approx(reference[best].tolist(), abs=1e-5)


def test_a_sequence_with_no_token_left_is_named(ops: Ops) -> None:
    sampler = Sampler(ops, max_num_seqs=3, vocab_size=VOCAB)
    sampler.start(SeqStart(0, SamplingParams(), 0, [1], []))
    params = SamplingParams(allowed_token_ids=tuple(EOS), min_tokens=2)
    sampler.start(SeqStart(2, params, 0, [1], [], EOS))
    with pytest.raises(NothingAllowed, match="slot 2"):
        sampler.draw(torch.zeros(2, VOCAB), [0, 2])
    with pytest.raises(NothingAllowed, match="slot 0"):
        sampler.draw(torch.full((1, VOCAB), math.nan), [0])
    assert len(sampler.draw(torch.zeros(1, VOCAB), [0])[0]) == 1


def test_allowed_ids_beyond_the_vocabulary_are_refused(ops: Ops) -> None:
    sampler = Sampler(ops, max_num_seqs=1, vocab_size=VOCAB)
    with pytest.raises(IndexError):
        sampler.start(SeqStart(0, SamplingParams(allowed_token_ids=(1, VOCAB)), 0, [1], []))
