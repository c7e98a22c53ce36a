"""Kernels under the limits of each kind of device: shared memory of a block, what a launch must ask for, overlap.

GPUs of desktops (sm_86, sm_89, sm_120) give a block 99 KB where an H100 gives 227: kernels have a smaller shape there,
with the same bits. Emulated: the emulator refuses what cudaLaunchKernelEx would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, PackedLinear
from octavo_engine.ops.cuda import CudaOps
from tests.ops.batches import Chunk, Shape, attend, sequence
from tests.ops.quantized import KINDS, Kind, random_weight
from tests.ops.test_cuda_moe import Mixture
from tests.ops.test_cuda_quantized import EVERY, rows_of, sliced
from tests.ops.test_cuda_sampling import sample, settings
from tests.ops.test_lora import random
from tests.support.cuda import emulated_device, emulated_ops

F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
SMALL = "sm_89"


@pytest.fixture(scope="module")
def ops() -> CudaOps:
    return emulated_ops()


def attention() -> Iterator[tuple[str, Shape]]:
    for head_dim, cache in product((64, 80, 96, 112, 128, 256), (BF16, F16, INT8, FP8)):
        yield f"d{head_dim}-{cache}", Shape(4, 2, head_dim, activation=F16 if cache == F16 else BF16, cache=cache)
    yield "simple-d192", Shape(2, 1, 192)
    yield "simple-f32", Shape(2, 1, 64, activation=F32, cache=F32)


ATTENTION = dict(attention())


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_desktops(ops: CudaOps, name: str) -> None:
    """Decode alone, of a few chunks, and prefill of more than one tile of 64 rows, some of which have none."""
    shape = ATTENTION[name]
    cuts = [(299, 300), (0, 35), (63, 130), (0, 1)]
    chunks = [Chunk(sequence(shape, end, seed), start, end) for seed, (start, end) in enumerate(cuts)]
    wanted = attend(ops, shape, chunks, sliding_window=0)
    with emulated_device(SMALL):
        ops._scratch.clear()
        got = attend(ops, shape, chunks, sliding_window=0)
    ops._scratch.clear()
    assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("device", ["sm_80", "sm_86", "sm_100", "sm_120"])
@pytest.mark.parametrize("name", ["d128-torch.bfloat16", "d256-torch.bfloat16", "d256-torch.int8"])
def test_attention_of_other_devices(name: str, device: str) -> None:
    shape = ATTENTION[name]
    chunks = [Chunk(sequence(shape, 90, 0), 0, 90), Chunk(sequence(shape, 290, 1), 289, 290)]
    wanted = attend(emulated_ops(), shape, chunks)
    with emulated_device(device):
        assert all(map(torch.equal, attend(emulated_ops(), shape, chunks), wanted))


@pytest.mark.parametrize(("activations", "kind"), EVERY, ids=lambda x: getattr(x, "name", str(x)).lower())
def test_quantised_products_of_desktops(ops: CudaOps, activations: Activations, kind: Kind) -> None:
    """17 rows are two blocks of 16 there, and 70 and 40 blocks of 64 with less of the ring."""
    packed = ops.pack_quantized(random_weight(kind, 40, 700), activations)

    def products() -> list[Tensor]:
        got = [ops.linear(rows_of(count, 700), packed) for count in (17, 70)]
        with sliced(ops, 8):
            return [*got, ops.linear(rows_of(40, 700), packed)]

    wanted = products()
    with emulated_device(SMALL):
        assert all(map(torch.equal, products(), wanted))


@pytest.mark.parametrize("kind", [None, *KINDS], ids=str)
def test_experts_of_desktops(ops: CudaOps, kind: Kind | None) -> None:
    """Blocks of 64 places of a quantised expert, of 128 of one in floats."""
    mixture = Mixture(2, 2, 32, BF16, kind)
    residual, x, scores = mixture.inputs(130)
    wanted = mixture.add(ops, residual.clone(), x, scores)
    with emulated_device(SMALL):
        assert torch.equal(mixture.add(ops, residual, x, scores), wanted)


@pytest.mark.parametrize("rank", [352, 368, 512])
def test_adapters_of_desktops(ops: CudaOps, rank: int) -> None:
    """From a rank of 368 on the wide tiles' dynamic shared memory and its static variables are more than 48 KB."""
    table = ops.lora_table(
        PackedLinear(torch.zeros(24, 40, dtype=BF16), 24, 40), [24], adapters=1, rank=rank, dtype=BF16
    )
    table.put(0, 0, random(rank, 40, seed=1, dtype=BF16), random(rank, 24, seed=2, dtype=BF16), 1.0)
    x, y = random(140, 40, seed=3, dtype=BF16), torch.zeros(140, 24)
    wanted = y.clone()
    ops.lora_add_(wanted, x, torch.zeros(140, dtype=torch.int32), table)
    with emulated_device(SMALL):
        ops.lora_add_(y, x, torch.zeros(140, dtype=torch.int32), table)
    assert wanted.any()
    assert torch.equal(y, wanted)


def everything_else(ops: CudaOps) -> Iterator[Callable[[], object]]:
    logits = random(3, 5000, seed=4)
    weight = ops.pack_linear(random(260, 64, seed=5, dtype=BF16))
    x = random(130, 64, seed=6, dtype=BF16)
    out = torch.empty(130, 260, dtype=BF16)
    yield lambda: sample(ops, logits, settings(3, 1))
    yield lambda: ops.logprobs(logits, torch.zeros(3, dtype=torch.int32), 20)
    yield lambda: ops._linear(out, x, weight.data, None, int(Activation.NONE), False, False, True)
    yield lambda: ops.rms_norm(random(2, 16384, seed=7), torch.ones(16384), 1e-5, BF16)


def test_the_others_fit_as_they_are(ops: CudaOps) -> None:
    with emulated_device(SMALL):
        for call in everything_else(ops):
            call()


def test_kernels_compiled_for_sm_80_do_not_overlap(ops: CudaOps) -> None:
    """What a driver makes of sm_80's PTX for a later device has no pdl_wait: the kernel before must have ended."""
    x = random(2, 64, seed=8)
    with emulated_device("sm_120", code=80):
        ops.rms_norm(x, torch.ones(64), 1e-5, BF16)


def nothing(ops: CudaOps) -> Iterator[Tensor]:
    """What every op makes of no rows."""
    none = torch.zeros(0, dtype=torch.int32)
    for dtype in (F32, BF16):
        x, weight = torch.zeros(0, 64, dtype=dtype), ops.pack_linear(torch.zeros(32, 64, dtype=dtype))
        yield torch.empty(0, 32, dtype=dtype)
        ops._linear(torch.empty(0, 32, dtype=dtype), x, weight.data, None, 0, False, False, False)
        for activations, kind in EVERY[::5]:
            yield ops.linear(x, ops.pack_quantized(random_weight(kind, 32, 64), activations))
        shape = Shape(4, 2, 64, activation=dtype, cache=dtype)
        qkv, (keys, values) = (
            torch.zeros(0, shape.columns, dtype=dtype),
            (x[0] for x in ops.empty_cache(shape.layout(1))),
        )
        ops.rope_and_cache(qkv, keys, values, none, none, torch.zeros(1, 64), num_heads=4)
        table, start = torch.zeros(0, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        yield ops.paged_attention(qkv, keys, values, table, start, none, num_heads=4, scale=1.0)
        yield ops.embedding(none, weight)
    yield ops.rms_norm(torch.zeros(0, 64), torch.ones(64), 1e-5, BF16)
    yield ops.cast(torch.zeros(0, 64), F16)
    yield sample(ops, torch.zeros(0, 50), settings(0, 1))
    yield ops.logprobs(torch.zeros(0, 50), none, 5)[2]
    mixture = Mixture(2, 2, 32, BF16, KINDS[0])
    yield mixture.add(ops, *(x[:0] for x in mixture.inputs(1)))
    pages = torch.zeros(2, 1, 2, 16, 64, dtype=BF16)
    ops.copy_pages(pages, pages.clone(), none, none)


def test_no_rows_are_no_launch(ops: CudaOps) -> None:
    for out in nothing(ops):
        assert len(out) == 0
