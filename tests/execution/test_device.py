"""DeviceRunner: what a step in flight may not depend on, what it leaves on the device, and its errors by type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from octavo.options import SamplingParams
from octavo_engine.execution.device import CudaQueue, InlineQueue, TypedErrors, open_queue
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.errors import DeviceLost, OutOfMemory
from octavo_engine.execution.runner import Runner
from octavo_engine.execution.sampler import NothingAllowed
from octavo_engine.execution.staging import Arrays, Packer
from octavo_engine.scheduling.plan import PENDING, Plan, SeqStart, SeqStep
from tests.execution.conftest import loaded_model, loaded_ops
from tests.execution.deferred import DeferredQueue

SIZES: dict[str, Any] = {
    "num_pages": 8,
    "page_size": 16,
    "max_num_seqs": 4,
    "max_model_len": 64,
    "kv_dtype": torch.float32,
}
PROMPT = [5, 6, 7]


def runners() -> tuple[Runner, DeviceRunner, DeferredQueue]:
    model, ops, queue = loaded_model("cpu", torch.float32), loaded_ops("cpu"), DeferredQueue()
    return Runner(model, ops, **SIZES), DeviceRunner(model, ops, queue=queue, **SIZES), queue


def prefill(params: SamplingParams, slot: int = 0, prompt: list[int] = PROMPT) -> Plan:
    start = SeqStart(slot, params, 3, prompt, [])
    return Plan(0, [], [start], [], [SeqStep(slot, 0, prompt, 0, [slot], [slot])])


def decode(step: int, token: int, slot: int = 0, prompt: list[int] = PROMPT) -> Plan:
    return Plan(step, [], [], [], [SeqStep(slot, len(prompt) + step - 1, [token], 1, [], [slot])])


def test_two_in_flight_draw_what_one_after_the_other_draws() -> None:
    runner, device, queue = runners()
    params = SamplingParams(temperature=1.1, logprobs=1)
    expected = [runner.collect(runner.submit(prefill(params)))]
    for step in range(1, 6):
        expected.append(runner.collect(runner.submit(decode(step, expected[-1].tokens[0]))))
    found = []
    ahead = device.submit(prefill(params))
    for step in range(1, 6):
        handle = device.submit(decode(step, PENDING))
        found.append(device.collect(ahead))
        ahead = handle
    found.append(device.collect(ahead))
    assert found == expected
    assert queue.most == 2


def test_nothing_of_a_step_is_known_before_it_was_waited_for() -> None:
    _, device, _ = runners()
    handle = device.submit(prefill(SamplingParams(temperature=0)))
    assert handle.tokens is None
    result = device.collect(handle)
    assert handle.tokens is not None
    assert result.tokens == handle.tokens.tolist()


def test_a_sequence_that_starts_in_the_slot_of_one_in_flight_does_not_disturb_it() -> None:
    """What the host keeps of a slot changes at submit; the step in flight has its own copy of all of it."""
    runner, device, _ = runners()
    masked = SamplingParams(temperature=0, allowed_token_ids=(7, 8), logprobs=0)
    other = SamplingParams(temperature=1.3, allowed_token_ids=(100, 101), logit_bias={101: 5.0})
    expected = runner.collect(runner.submit(prefill(masked)))
    first = device.submit(prefill(masked))
    after = prefill(other, prompt=[9, 9])
    after.step, after.ends = 1, [0]
    second = device.submit(after)
    assert device.collect(first) == expected
    assert device.collect(second).tokens[0] in (100, 101)


def test_what_is_allowed_is_known_before_the_step_that_draws() -> None:
    """The prompt comes in two chunks, and nobody before had a mask."""
    _, device, _ = runners()
    start = SeqStart(0, SamplingParams(temperature=0, allowed_token_ids=(7, 9)), 3, PROMPT, [])
    first = Plan(0, [], [start], [], [SeqStep(0, 0, PROMPT[:2], 0, [0], [])])
    assert device.collect(device.submit(first)).tokens == []
    second = Plan(1, [], [], [], [SeqStep(0, 2, PROMPT[2:], 1, [], [0])])
    assert device.collect(device.submit(second)).tokens[0] in (7, 9)


def test_a_discarded_step_counts_for_nothing() -> None:
    runner, device, _ = runners()
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    tokens = runner.collect(runner.submit(prefill(params))).tokens
    expected = [tokens, *[runner.collect(runner.submit(decode(1, tokens[0]))).tokens]]
    got = device.collect(device.submit(prefill(params))).tokens
    device.discard(device.submit(decode(1, got[0])))
    again = device.collect(device.submit(decode(1, got[0]))).tokens
    assert [got, again] == expected


def test_page_copies_are_not_done_again() -> None:
    """The source may hold something else by then."""
    _, device, _ = runners()
    device.collect(device.submit(prefill(SamplingParams(temperature=0))))
    keys = device.cache.keys
    plan = Plan(1, [], [], [(0, 5)], [])
    device.collect(device.submit(plan))
    assert torch.equal(keys[:, 5], keys[:, 0])
    keys[:, 0] = 0
    device.collect(device.submit(plan))
    assert keys[:, 5].any()


def test_a_token_that_could_not_be_drawn_feeds_a_valid_id() -> None:
    _, device, _ = runners()
    nothing = SamplingParams(temperature=0, allowed_token_ids=(7,))
    plan = prefill(nothing)
    plan.starts[0].bad_words = [[7]]
    first, second = device.submit(plan), device.submit(decode(1, PENDING))
    with pytest.raises(NothingAllowed, match="slot 0"):
        device.collect(first)
    device.discard(second)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED in cublas"),
        RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("kernel launch: cudaErrorMemoryAllocation, out of memory"),
    ],
)
def test_out_of_memory_has_a_type(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _, device, _ = runners()

    def fail(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(device, "_forward_kept", fail)
    handle = device.submit(prefill(SamplingParams()))
    with pytest.raises(OutOfMemory, match=r"step 0 of 3 tokens in 1 sequences: the fake has 0 MB free.*max_num_seqs"):
        device.collect(handle)


def test_a_lost_device_has_a_type_wherever_it_shows() -> None:
    _, device, queue = runners()
    first, second = device.submit(prefill(SamplingParams())), device.submit(decode(1, PENDING))
    queue.lost = True
    for call in (lambda: device.collect(first), lambda: device.discard(second)):
        with pytest.raises(DeviceLost, match="launch failure"):
            call()
    with pytest.raises(DeviceLost), TypedErrors(queue, "a step"):
        raise RuntimeError("whatever follows from it")


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("x"), NothingAllowed("x"), OutOfMemory("x"), DeviceLost("x")):
        with pytest.raises(type(error)) as caught, TypedErrors(InlineQueue(), "a step"):
            raise error
        assert caught.value is error


def test_the_queue_of_a_device() -> None:
    assert isinstance(open_queue(torch.device("cpu")), InlineQueue)
    assert isinstance(open_queue(torch.device("cuda", 0)), CudaQueue)


def test_what_is_packed_arrives_and_may_change_afterwards() -> None:
    packer = Packer(torch.device("cpu"))
    rng = np.random.default_rng(0)
    for size in (1, 17, 5000, 0):
        arrays: Arrays = {
            "a": rng.integers(-9, 9, size, dtype=np.int32),
            "b": rng.integers(-(1 << 60), 1 << 60, size, dtype=np.int64),
            "c": rng.random(size, dtype=np.float32),
            "d": np.arange(3, dtype=np.int64),
        }
        expected = {name: array.copy() for name, array in arrays.items()}
        sent = packer.send(arrays)
        for array in arrays.values():
            array[:] = 0
        packer.send({"e": np.full(6000, 7, np.int32)})
        for name, tensor in sent.items():
            assert tensor.numpy().dtype == expected[name].dtype
            assert np.array_equal(tensor.numpy(), expected[name])
            assert tensor.data_ptr() % 8 == 0
