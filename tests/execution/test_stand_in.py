"""The lines that only a GPU runs, on the stand-in for one (tests/support/stand_in): queues, graphs, copies, memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo.options import EngineOptions, SamplingParams
from octavo_engine.execution.device import CudaQueue, TypedErrors
from octavo_engine.execution.device_runner import DeviceRunner
from octavo_engine.execution.errors import DeviceLost, OutOfMemory
from octavo_engine.execution.kv_cache import page_bytes
from octavo_engine.execution.memory import CudaMemory, profile_step
from octavo_engine.layers.lora import Adapters
from octavo_engine.machine import Machine, NoRoom
from octavo_engine.models import load_model
from octavo_engine.ops import TensorSpec
from octavo_engine.ops.cuda import CudaOps
from octavo_engine.ops.cuda_graphs import CudaGraphs, graph_sizes
from octavo_engine.ops.lora import LowRank
from octavo_engine.scheduling.plan import PENDING, Again, Plan, SeqStart, SeqStep
from tests.execution.driver import Driver, RandomSource, tiny_llama
from tests.support.call_graphs import CallGraphs
from tests.support.cuda import OnDevice, emulated_ops
from tests.support.stand_in import Device, Forbidden, device

BF16 = torch.bfloat16
SIZES: dict[str, Any] = {"num_pages": 40, "max_num_seqs": 4, "max_model_len": 64, "kv_dtype": BF16}
EVERYTHING = SamplingParams(
    temperature=0.9, top_k=20, min_p=0.01, logprobs=2, prompt_logprobs=1, repetition_penalty=1.2, logit_bias={3: 1.5},
    allowed_token_ids=list(range(2, 200)), bad_words=["x"],
)  # fmt: skip
PLAIN = SamplingParams(temperature=0)
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5] * 5, [3]]


@pytest.fixture
def gpu() -> Iterator[Device]:
    with device() as found:
        yield found


def unwaited(gpu: Device) -> Callable[..., DeviceRunner]:
    """Makes runners that may not wait for the device when they submit."""

    class Unwaited(DeviceRunner):
        def submit(self, plan: Plan) -> Any:
            gpu.clear()
            step = super().submit(plan)
            assert gpu.waits == []
            return step

    return Unwaited


def drive(ops: CudaOps, make: Callable[..., DeviceRunner]) -> list[Any]:
    """Chunks, decode steps in graphs, forks with copies of pages; all that they gave."""
    driver = Driver(tiny_llama(ops, BF16), ops, make=make, **SIZES)
    sequences = [
        driver.start(prompt, params, 1) for prompt, params in zip(PROMPTS, [EVERYTHING, PLAIN, PLAIN], strict=True)
    ]
    child = driver.start(PROMPTS[1], PLAIN, 2)
    first, parent, last = sequences
    driver.step([(first, 2), (parent, 20), (last, 9)])
    driver.step([(first, 2), (parent, 20)], {parent: [child]})
    driver.finish([*sequences, child], 6)
    return [(s.output, s.logprobs, s.prompt_logprobs) for s in [*sequences, child]]


def test_steps_never_wait_and_give_what_they_give_without_a_device() -> None:
    with device() as gpu:
        found = drive(CudaOps(), unwaited(gpu))
    assert found == drive(emulated_ops(check=False, graphs=CallGraphs()), DeviceRunner)


@pytest.mark.gpu
def test_steps_never_wait_on_a_device() -> None:
    """As torch itself tells of it."""

    class Unwaited(DeviceRunner):
        def submit(self, plan: Plan) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is a prototype, it says
                torch.cuda.set_sync_debug_mode("error")
                try:
                    return super().submit(plan)
                finally:
                    torch.cuda.set_sync_debug_mode("default")

    assert [len(output) for output, _, _ in drive(CudaOps(), Unwaited)] == [6, 6, 6, 6]


def test_what_a_decode_step_launches(gpu: Device) -> None:
    """Two in flight; one copy there, one back, the inputs of the graph at once."""
    ops = CudaOps()
    runner = unwaited(gpu)(tiny_llama(ops, BF16), ops, page_size=16, **SIZES)
    starts = [SeqStart(slot, PLAIN, slot, [slot + 2], []) for slot in range(3)]
    seqs = [SeqStep(slot, 0, [slot + 2], 0, [slot], [slot]) for slot in range(3)]
    ahead = [runner.submit(Plan(0, [], starts, [], seqs))]
    steps = [SeqStep(slot, 1, [PENDING], 1, [], [slot]) for slot in range(3)]
    for step in range(5):
        ahead.append(runner.submit(Plan(1 + step, [], [], [], steps, Again(step, [], []) if step else None)))
        assert len(runner.collect(ahead.pop(0)).tokens) == 3
    assert dict(gpu.counted) == {
        "to the device": 1, "aten._foreach_copy_.default": 1, "graph": 1, "sample": 1, "aten.clamp_.default": 1,
        "to the host": 1,
    }  # fmt: skip


def test_adapters_come_and_go_without_a_wait(gpu: Device) -> None:
    ops, adapters = CudaOps(), Adapters(2, BF16, rank=8)
    model = load_model(RandomSource(), ops, BF16, adapters=adapters)
    driver = Driver(model, ops, make=lambda *args, **sizes: unwaited(gpu)(*args, adapters=adapters, **sizes), **SIZES)
    names = [f"model.layers.{i}.mlp.{name}" for i in range(3) for name in ("gate_proj", "up_proj")]
    gpu.clear()
    adapters.put(1, adapters.prepare([LowRank(n, torch.randn(4, 64), torch.randn(96, 4), 0.5) for n in names]))
    assert gpu.waits == []
    outputs = []
    for adapter in (-1, 1):
        sequence = driver.start(PROMPTS[0], PLAIN, adapter=adapter)
        driver.finish([sequence], 5)
        driver.stop(sequence)
        outputs.append(sequence.output)
    gpu.clear()
    adapters.drop(1)
    assert gpu.waits == []
    assert outputs[0] != outputs[1]


def test_what_was_fetched_holds_until_its_step_is_dropped(gpu: Device) -> None:
    queue, found = CudaQueue(torch.device("cuda", 0)), list[torch.Tensor]()
    first, second = (queue.enqueue(lambda: found.append(queue.fetch(torch.ones(3, device="cuda")))) for _ in range(2))
    again = queue.enqueue(lambda: found.append(queue.fetch(torch.zeros(100, dtype=torch.int64, device="cuda"))))
    assert len({x.data_ptr() for x in found}) == 3
    address = found[0].data_ptr()
    del first
    again = queue.enqueue(lambda: found.append(queue.fetch(torch.full((2, 2), 7.0, device="cuda"))))
    again.wait()
    second.wait()
    assert found[3].data_ptr() == address
    assert found[3].equal(torch.full((2, 2), 7.0))
    assert found[1].equal(torch.ones(3))


def test_products_of_float32_are_of_float32(gpu: Device) -> None:
    """Also where the environment has told torch otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        CudaOps()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


# ---- what the stand-in is strict about --------------------------------------------------------------------------


def test_operands_are_on_one_device(gpu: Device) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3, device="cuda") + torch.ones(3)


def test_pinned_memory_is_left_alone_until_a_copy_is_done(gpu: Device) -> None:
    pinned = torch.empty(3, pin_memory=True).zero_()
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there = pinned.to("cuda:0", non_blocking=True)
    event.record()
    event.synchronize()
    pinned += 1
    there = pinned.to("cuda:0", non_blocking=True)
    pinned += 1
    with pytest.raises(Forbidden, match="written to while a copy of it was under way"):
        there.cpu()


def test_a_copy_to_pinned_memory_is_there_when_it_was_waited_for(gpu: Device) -> None:
    queue = CudaQueue(torch.device("cuda", 0))
    fetched: list[torch.Tensor] = []
    done = queue.enqueue(lambda: fetched.append(queue.fetch(torch.ones(3, device="cuda"))))
    assert not fetched[0].equal(torch.ones(3))
    done.wait()
    assert fetched[0].equal(torch.ones(3))


def test_streams_wait_for_each_other(gpu: Device) -> None:
    x, side = torch.zeros(3, device="cuda"), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with pytest.raises(Forbidden, match="does not wait for what stream"), torch.cuda.stream(side):
        x + 1
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x + 1


def test_waits_are_seen(gpu: Device) -> None:
    x = torch.arange(3, device="cuda")
    for work in (
        x.max().item,
        x.nonzero,
        lambda: x[x > 1],
        lambda: x[torch.tensor([1])],
        lambda: x.copy_(torch.ones(3)),
    ):
        gpu.clear()
        work()
        assert gpu.waits, work


def test_tensors_of_tests_lie_there_as_they_lie_here(gpu: Device) -> None:
    """Strides, and an address that is no multiple of 16, for what an op refuses to be refused there too."""
    ops: Any = SimpleNamespace(device=torch.device("cuda", 0), look=lambda x: (x.data_ptr() % 16, x.stride(), x.sum()))
    x = torch.ones((3, 24), dtype=BF16)[:, 4:-4]
    assert OnDevice(ops).look(x) == (8, (24, 1), 48)


# ---- graphs ----------------------------------------------------------------------------------------------------


def test_graphs_share_the_memory_of_their_results(gpu: Device) -> None:
    """Of logits it would be half a gigabyte."""
    ops, weight = CudaOps(), torch.ones((8, 4096), device="cuda")
    run = ops.record(lambda x: torch.mm(x, weight), [TensorSpec(("T", 8), torch.float32)], rows=64)
    pools = sum(pool.reserved for pool in gpu.pools.values())
    assert len(graph_sizes(64)) > 5
    assert pools == 64 * 4096 * 4
    for rows in (64, 1, 33, 8):
        x = torch.full((rows, 8), float(rows), device="cuda")
        assert run(x).cpu().equal(torch.full((rows, 4096), 8.0 * rows))


def test_a_graph_holds_what_it_last_made(gpu: Device) -> None:
    graphs = CudaGraphs(torch.device("cuda", 0))
    x = torch.zeros(3, device="cuda")
    graph, out = graphs.capture(lambda: x + 1)
    x.fill_(4)
    assert out.cpu().equal(torch.ones(3))
    graph.replay()
    assert out.cpu().equal(torch.full((3,), 5.0))


def test_a_graph_has_all_its_memory_when_it_is_captured(gpu: Device) -> None:
    graphs, x = CudaGraphs(torch.device("cuda", 0)), torch.zeros(3, device="cuda")
    graph, _ = graphs.capture(lambda: x + 1)
    free = graphs.free_memory()
    graph.replay()
    assert graphs.free_memory() == free


def test_results_are_kept_where_torch_does_not_manage_the_memory(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's own allocator takes back what nobody holds."""
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    graphs, x = CudaGraphs(torch.device("cuda", 0)), torch.zeros(1024, device="cuda")
    captured = [graphs.capture(lambda: x + 1) for _ in range(3)]
    assert sum(pool.live for pool in gpu.pools.values()) == 3 * x.nbytes
    for graph, out in captured:
        graph.replay()
        assert out.cpu().equal(torch.ones(1024))


def test_what_breaks_a_capture_is_told(gpu: Device) -> None:
    graphs, runs = CudaGraphs(torch.device("cuda", 0)), []
    x = torch.zeros(3, device="cuda")

    def waits() -> torch.Tensor:
        runs.append(x.sum().item() if runs else 0.0)
        return x

    with pytest.raises(RuntimeError, match=r"not permitted when stream is capturing.*_local_scalar_dense"):
        graphs.capture(waits)
    assert gpu.capture is None
    assert gpu.current is gpu.default


# ---- memory ----------------------------------------------------------------------------------------------------


def test_the_cache_that_is_measured_fits_with_every_graph(gpu: Device, caplog: pytest.LogCaptureFixture) -> None:
    """To the byte, as nobody else is there: what is left when all is made is what the user wanted left."""
    caplog.set_level(logging.INFO, "octavo.engine")
    machine = Machine("auto", 1)
    assert machine.device == "cuda:0"
    model = tiny_llama(machine.ops, BF16)  # type: ignore[arg-type]
    options = EngineOptions(
        model="m", max_num_seqs=8, max_model_len=256, max_num_batched_tokens=64, gpu_memory_utilization=0.5
    )
    page = page_bytes(machine.ops, model.config, 16, BF16)
    gpu.total = gpu.reserved + 5_000_000
    machine._free_at_start = 5_000_000
    cache = machine.cache_memory(options, model, BF16, page)
    assert "weights" in caplog.text
    DeviceRunner(
        model, machine.ops, num_pages=cache // page, page_size=16, max_num_seqs=8, max_model_len=256, kv_dtype=BF16
    )
    assert gpu.total - gpu.reserved >= 2_400_000


def test_a_model_too_large_is_refused_with_numbers(gpu: Device) -> None:
    machine = Machine("cuda", 1)
    model = tiny_llama(machine.ops, BF16)  # type: ignore[arg-type]
    options = EngineOptions(model="m", max_num_seqs=64, max_model_len=256, max_num_batched_tokens=4096)
    gpu.total = gpu.live + 200_000
    with pytest.raises(NoRoom, match="max_num_batched_tokens=4096 tokens in max_num_seqs=64 sequences does not fit"):
        machine.cache_memory(options, model, BF16, page_bytes(machine.ops, model.config, 16, BF16))


def test_code_that_a_step_loads_counts_as_its_memory(gpu: Device) -> None:
    memory, kept = CudaMemory(torch.device("cuda", 0)), []

    def work() -> None:
        torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
        kept.append(torch.empty(1 << 20, dtype=torch.uint8, device="cuda"))
        gpu.outside += 3 << 20

    assert memory.peak_of(work) == 8 << 20
    assert memory.free() == gpu.total - (4 << 20)


def test_the_largest_step_draws_with_all_that_takes_memory(gpu: Device) -> None:
    """Penalties and masks work on a copy of the logits: of 256 rows over 128,256 tokens 131 MB."""
    ops, count, memory = CudaOps(), 64, CudaMemory(torch.device("cuda", 0))
    model = tiny_llama(ops, BF16)
    sizes: dict[str, Any] = {"page_size": 16, "max_num_seqs": count, "max_model_len": 64, "kv_dtype": BF16}
    starts = [SeqStart(slot, EVERYTHING, slot, [slot], []) for slot in range(count)]
    seqs = [SeqStep(slot, 0, [slot], 0, [slot], [slot]) for slot in range(count)]

    def everything() -> None:
        runner = DeviceRunner(model, ops, num_pages=count, graphs=False, **sizes)
        runner.collect(runner.submit(Plan(0, [], starts, [], seqs)))

    def profiled() -> None:
        profile_step(model, ops, max_num_batched_tokens=count, **sizes)

    profiled()  # what is made once
    assert memory.peak_of(profiled) >= memory.peak_of(everything)


def test_out_of_memory_says_how_much_there_is(gpu: Device) -> None:
    queue, kept = CudaQueue(torch.device("cuda", 0)), list[torch.Tensor]()
    words = r"in step 7: cuda:0 has 1074 MB free of 1074 MB; lower EngineOptions"
    with pytest.raises(OutOfMemory, match=words), TypedErrors(queue, "step 7"):
        queue.enqueue(lambda: kept.append(torch.empty(2 << 30, dtype=torch.uint8, device="cuda")))


def test_a_lost_device_is_named(gpu: Device) -> None:
    queue = CudaQueue(torch.device("cuda", 0))
    done = queue.enqueue(lambda: None)
    gpu.lost = True
    words = r"cuda:0 \(a stand-in\) was lost: CUDA error: an illegal memory access"
    with pytest.raises(DeviceLost, match=words), TypedErrors(queue, "a step"):
        done.wait()
