"""Attention on CUDA beyond the table of all backends: its own types and head sizes, padding rows, and law 6 to the bit.

Law 6 here says that a row has the same bits from the decode kernel, which may cut its keys over several blocks, and
from the prefill kernel at any place of any tile. test_the_kernels_that_are_compared keeps these tests honest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Ops
from tests.ops import caches
from tests.ops.batches import Chunk, Shape, attend, empty_cache, make_batch, sequence

F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
TYPES = {
    "bf16": (BF16, BF16),
    "f16": (F16, F16),
    "bf16-f16": (BF16, F16),
    "f16-bf16": (F16, BF16),
    "bf16-int8": (BF16, INT8),
    "f16-int8": (F16, INT8),
    "bf16-fp8": (BF16, FP8),
    "f16-fp8": (F16, FP8),
    "f32": (F32, F32),
    "f32-int8": (F32, INT8),
    "f16-f32": (F16, F32),
}
SLOPES = torch.tensor([2.0**-i for i in range(6)])
ROUNDED = torch.tensor([0.7**i for i in range(6)], dtype=BF16)
DECODE = [(n - 1, n) for n in (1, 7, 17, 31, 33, 130, 300)]
MIXED = [(0, 33), (129, 130), (17, 130), (0, 1), (299, 300), (3, 8), (100, 164)]


def cuts_of(shape: Shape, cuts: list[tuple[int, int]]) -> list[Chunk]:
    return [Chunk(sequence(shape, end, seed), start, end) for seed, (start, end) in enumerate(cuts)]


def tolerance(shape: Shape) -> tuple[float, float]:
    """Weights and products of 16 bits: bfloat16's 2^-9 of the values' size, at most about 4; float16's 2^-12."""
    if BF16 in (shape.activation, shape.cache):
        return 1.6e-2, 2**-7
    return (3e-3, 2**-10) if shape.activation == F16 or shape.cache in (INT8, FP8) else (2e-5, 2e-5)


def against_reference() -> Iterator[tuple[str, Shape, list[tuple[int, int]], dict[str, Any]]]:
    for name, (activation, cache) in TYPES.items():
        shape = Shape(activation=activation, cache=cache)
        yield f"{name}-decode", shape, DECODE, {}
        yield f"{name}-mixed", shape, MIXED, {}
    for name, options in product(
        ("bf16", "f16-fp8", "f16-f32"),
        (
            {"sliding_window": 1},
            {"sliding_window": 40},
            {"softcap": 5.0},
            {"alibi_slopes": SLOPES},
            {"alibi_slopes": ROUNDED},
            {"sliding_window": 33, "softcap": 3.0, "alibi_slopes": SLOPES},
            {"scale": 1.0},
        ),
    ):
        activation, cache = TYPES[name]
        rounded = "-rounded" * (options.get("alibi_slopes") is ROUNDED)
        yield f"{name}-{'-'.join(options)}{rounded}", Shape(activation=activation, cache=cache), MIXED, options
    for head_dim, (heads, kv_heads), cache in product(
        (64, 80, 96, 112, 128, 256), ((2, 2), (8, 1)), (BF16, F16, INT8, FP8)
    ):
        shape = Shape(heads, kv_heads, head_dim, activation=BF16 if cache == BF16 else F16, cache=cache)
        yield f"{cache}-d{head_dim}-{heads}on{kv_heads}", shape, [(0, 33), (69, 70), (3, 7), (40, 90)], {}
    for heads, kv_heads in (
        (5, 1),
        (14, 2),
        (9, 1),
        (12, 1),
        (32, 2),
        (48, 1),
    ):  # groups of no power of two, and large ones
        yield f"{heads}-heads-on-{kv_heads}", Shape(heads, kv_heads, 64), [(0, 9), (40, 41), (3, 25)], {}
    yield "window-beyond-the-context", Shape(), MIXED, {"sliding_window": 4096}
    for head_dim in (16, 48, 160, 192):
        yield f"other-d{head_dim}", Shape(6, 2, head_dim), [(0, 33), (69, 70)], {}
    yield "page-48", Shape(page_size=48), MIXED, {}
    yield "fp8-page-32", Shape(page_size=32, cache=FP8), MIXED, {}
    yield "71-heads-share-one", Shape(71, 1, 64), [(0, 9), (40, 41), (3, 5)], {}


CASES = {name: (shape, cuts, options) for name, shape, cuts, options in against_reference()}


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(cuda_ops: Ops, reference: Ops, name: str) -> None:
    shape, cuts, options = CASES[name]
    chunks = cuts_of(shape, cuts)
    absolute, relative = tolerance(shape)
    got, wanted = (attend(ops, shape, chunks, **options) for ops in (cuda_ops, reference))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=absolute, rtol=relative)


# ---- law 6 -----------------------------------------------------------------------------------------------------


def law6() -> Iterator[tuple[str, Shape, dict[str, Any]]]:
    for name in ("bf16", "f16", "bf16-int8", "f16-fp8", "f32"):
        activation, cache = TYPES[name]
        yield name, Shape(activation=activation, cache=cache), {}
    yield "window", Shape(), {"sliding_window": 40}
    yield "long-window", Shape(cache=FP8), {"sliding_window": 270}
    yield "softcap", Shape(), {"softcap": 5.0}
    yield "alibi", Shape(), {"alibi_slopes": SLOPES}
    yield "rounded-alibi", Shape(), {"alibi_slopes": ROUNDED}
    yield "all", Shape(cache=INT8), {"sliding_window": 290, "softcap": 3.0, "alibi_slopes": SLOPES}
    yield "sharp", Shape(), {"scale": 1.0}
    yield "page-48", Shape(page_size=48), {}
    for head_dim, heads, kv_heads in ((80, 8, 1), (96, 2, 2), (112, 6, 2), (128, 8, 2), (256, 2, 1)):
        for cache in (BF16, INT8):
            yield f"{cache}-d{head_dim}", Shape(heads, kv_heads, head_dim, cache=cache), {}


LAW6 = {name: (shape, options) for name, shape, options in law6()}
LENGTH = 330


@pytest.mark.parametrize("name", LAW6)
def test_rows_do_not_depend_on_batch_or_chunks(cuda_ops: Ops, name: str) -> None:
    shape, options = LAW6[name]
    rows = sequence(shape, LENGTH, seed=3)
    whole = attend(cuda_ops, shape, [Chunk(rows, 0, LENGTH)], **options)[0]

    def piece(start: int, end: int, *others: Chunk, seed: int) -> Tensor:
        """Tokens start:end behind the others, in pages of another order."""
        return attend(cuda_ops, shape, [*others, Chunk(rows, start, end)], seed, **options)[-1]

    for token in (0, 31, 32, 64, 255, 256, LENGTH - 1):  # alone, by the decode kernel
        assert torch.equal(piece(token, token + 1, seed=token)[0], whole[token]), token
    # So much beside it that its keys are not cut, and prefill tiles in the same launch.
    others = cuts_of(shape, [(699, 700), (0, 40), (899, 900), (63, 65)])
    assert torch.equal(piece(LENGTH - 1, LENGTH, *others, seed=1)[0], whole[-1])
    assert torch.equal(piece(171, LENGTH, *others[:2], seed=2), whole[171:])  # a chunk behind a prefix
    assert torch.equal(piece(LENGTH - 3, LENGTH, seed=4), whole[-3:])  # a few tokens, as speculation verifies
    assert torch.equal(piece(255, 259, seed=5), whole[255:259])  # across the place where a row's keys begin to be cut


def decodes(batch: dict[str, Tensor], first: int, end: int) -> dict[str, Tensor]:
    """Tokens first:end of a batch of one chunk as sequences of their own, each of which ends there."""
    start = int(batch["seq_lens"]) - len(batch["qkv"])
    return {
        **batch,
        "qkv": batch["qkv"][first - start : end - start],
        "page_table": batch["page_table"].repeat(end - first, 1),
        "query_start": torch.arange(end - first + 1, dtype=torch.int32),
        "seq_lens": torch.arange(first, end, dtype=torch.int32) + 1,
    }


# Sums are float32 and results 16 bits: of 4096 changes of a last bit about one shows in float16, so many are looked at.


@pytest.mark.parametrize("name", ["f16", "f16-int8"])
def test_rows_of_three_chunks(cuda_ops: Ops, name: str) -> None:
    activation, cache = TYPES[name]
    shape, first, length = Shape(activation=activation, cache=cache), 530, 610
    batch = make_batch(cuda_ops, shape, [Chunk(sequence(shape, length, seed=5), 0, length)])
    options: dict[str, Any] = {"num_heads": shape.num_heads, "scale": 0.25}
    whole = cuda_ops.paged_attention(**batch, **options)[first:]
    together = cuda_ops.paged_attention(**decodes(batch, first, length), **options)  # no keys are cut
    assert torch.equal(together, whole)
    for token in range(first, length):  # all keys are
        alone = cuda_ops.paged_attention(**decodes(batch, token, token + 1), **options)
        assert torch.equal(alone[0], whole[token - first]), token


def test_rows_of_two_chunk_sizes_in_one_tile(cuda_ops: Ops) -> None:
    """Rows up to 4096 keys have chunks of 256, the next ones of 512."""
    shape = Shape(2, 1, 64, activation=F16, cache=F16)
    batch = make_batch(cuda_ops, shape, [Chunk(sequence(shape, 4120, seed=1), 4060, 4120)])
    options: dict[str, Any] = {"num_heads": shape.num_heads, "scale": 0.25}
    tile = cuda_ops.paged_attention(**batch, **options)
    assert torch.equal(cuda_ops.paged_attention(**decodes(batch, 4080, 4120), **options), tile[20:])
    few = attend(cuda_ops, shape, [Chunk(sequence(shape, 4120, seed=1), 4090, 4100)], seed=2, scale=0.25)[0]
    assert torch.equal(few, tile[30:40])  # by the decode kernel, in tiles of one size each


def test_the_kernels_that_are_compared(cuda_ops: Any) -> None:
    """One long sequence is cut in items of a chunk; beside enough others none is; a chunk of a prompt is prefill."""
    shape = Shape()
    ops = getattr(cuda_ops, "_ops", cuda_ops)
    if ops.isa != "emulated":
        pytest.skip("how many CTAs a device has decides; emulated there are six")

    def items(*cuts: tuple[int, int]) -> tuple[int, int]:
        ops._plans.clear()
        attend(cuda_ops, shape, cuts_of(shape, list(cuts)))
        (plan,) = ops._plans.values()
        return tuple(plan.counts.tolist())

    assert items((LENGTH - 1, LENGTH)) == (2, 0)
    assert items((LENGTH - 1, LENGTH), *[(899, 900)] * 8) == (9, 0)
    assert items((0, LENGTH)) == (0, 8)  # 3 rows a token
    assert items((LENGTH - 3, LENGTH), (0, 40)) == (2, 1)


def test_lists_follow_lengths_that_change_in_place(cuda_ops: Ops) -> None:
    """A step's tensors are the last one's, written anew: when the first layer comes round, so do the work lists."""
    shape = Shape()
    batch = make_batch(cuda_ops, shape, cuts_of(shape, [(299, 300), (99, 100)]))
    options: dict[str, Any] = {"num_heads": shape.num_heads, "scale": 0.125}
    layers = [(batch["keys"], batch["values"]), (batch["keys"].clone(), batch["values"].clone())]
    lengths = ([300, 100], [20, 97])
    steps = []
    for step in lengths:
        batch["seq_lens"].copy_(torch.tensor(step))
        steps.append([cuda_ops.paged_attention(**{**batch, "keys": k, "values": v}, **options) for k, v in layers])
    for step, outs in zip(lengths, steps, strict=True):
        fresh = {**batch, "seq_lens": torch.tensor(step, dtype=torch.int32)}
        wanted = cuda_ops.paged_attention(**fresh, **options)
        assert all(torch.equal(out, wanted) for out in outs)


def test_padding_rows_do_nothing(cuda_ops: Ops) -> None:
    """What a captured graph of a larger size sees: sequences of no tokens, slots of -1."""
    shape = Shape()
    chunks = cuts_of(shape, [(299, 300), (40, 41)])
    wanted = torch.cat(attend(cuda_ops, shape, chunks))
    batch = make_batch(cuda_ops, shape, chunks)
    padded = {
        **batch,
        "qkv": torch.cat((batch["qkv"], torch.full((3, shape.columns), float("nan"), dtype=BF16))),
        "page_table": torch.cat((batch["page_table"], torch.zeros(3, batch["page_table"].shape[1], dtype=torch.int32))),
        "query_start": torch.arange(6, dtype=torch.int32),
        "seq_lens": torch.cat((batch["seq_lens"], torch.zeros(3, dtype=torch.int32))),
    }
    out = cuda_ops.paged_attention(**padded, num_heads=shape.num_heads, scale=shape.head_dim**-0.5)
    assert torch.equal(out[:2], wanted)
    assert not out[2:].any()

    keys, values = empty_cache(cuda_ops, shape, 2)
    before = keys.clone(), values.clone()
    qkv = sequence(shape, 3, 1)
    slots, positions = torch.full((3,), -1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    cuda_ops.rope_and_cache(qkv, keys, values, slots, positions, torch.ones(4, 64), num_heads=shape.num_heads)
    assert torch.equal(qkv, sequence(shape, 3, 1))
    assert all(
        torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip((keys, values), before, strict=True)
    )


# ---- writes and copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary"), [(64, 64), (80, 20), (256, 64), (96, 0)])
@pytest.mark.parametrize("name", TYPES)
def test_rope_and_cache(
    cuda_ops: Ops, reference: Ops, name: str, head_dim: int, rotary: int, interleaved: bool
) -> None:
    activation, cache = TYPES[name]
    shape = Shape(3, 1, head_dim, activation=activation, cache=cache)
    held = Shape(3, 1, head_dim, activation=activation, cache=F32)  # by the reference, not rounded to the cache's type
    tokens, pages = 21, torch.arange(3)
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(1))[:tokens].int()
    positions = torch.arange(tokens, dtype=torch.int32) * 3
    angles = torch.arange(3.0 * tokens).outer(torch.arange(1.0, rotary // 2 + 1) ** -1)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1) if rotary else None
    results = []
    for ops, layout in ((cuda_ops, shape), (reference, held)):
        qkv = sequence(shape, tokens, seed=3)
        keys, values = empty_cache(ops, layout, 3)
        ops.rope_and_cache(qkv, keys, values, slots, positions, cos_sin, num_heads=3, interleaved=interleaved)
        k, v = caches.read(keys, values, pages, head_dim)
        results.append((qkv, k[:, slots.long()], v[:, slots.long()]))
    (qkv, k, v), (wanted_qkv, *wanted) = results
    step = {F32: 2**-20, F16: 2**-10, BF16: 2**-7}
    torch.testing.assert_close(qkv, wanted_qkv, atol=1e-4, rtol=step[activation])
    for got, exact in zip((k, v), wanted, strict=True):
        if cache in (INT8, FP8):
            amax = exact.abs().amax(-1, keepdim=True)
            # Half a step of 127, or half of the last of fp8's three bits; and the scale's own rounding.
            bound = amax * (0.5 / 127 + 2**-10) if cache == INT8 else exact.abs() / 16 + amax * 2**-9
            assert ((got - exact).abs() <= bound + exact.abs() * step[activation]).all()
        else:
            torch.testing.assert_close(got, exact, atol=1e-4, rtol=step[cache] + step[activation])


@pytest.mark.parametrize("cache", [INT8, FP8])
def test_8_bit_scales_of_odd_vectors(cuda_ops: Ops, cache: torch.dtype) -> None:
    """Zeros have scale 0; what is not finite makes its own token and head NaN, and no other."""
    shape = Shape(1, 1, 64, activation=F16, cache=cache)
    qkv = sequence(shape, 4, 1)
    qkv[0, 64:] = 0
    qkv[1, 70] = float("inf")
    qkv[2, 130] = float("nan")
    keys, values = empty_cache(cuda_ops, shape, 1)
    tokens = torch.arange(4, dtype=torch.int32)
    cuda_ops.rope_and_cache(qkv, keys, values, tokens, tokens, None, num_heads=1)
    k, v = (x[0, :4] for x in caches.read(keys, values, torch.arange(1), 64))
    assert not torch.stack((k[0], v[0])).any()
    assert torch.stack((k[1], v[2])).isnan().all()
    assert torch.stack((k[2], v[1])).isfinite().all()
    torch.testing.assert_close(k[3], qkv[3, 64:128].float(), atol=0.02, rtol=2**-4)


@pytest.mark.parametrize("cache", [F32, BF16, INT8, FP8])
def test_copy_pages(cuda_ops: Ops, cache: torch.dtype) -> None:
    keys, values = cuda_ops.empty_cache(Shape(cache=cache).layout(9, 3))
    for x in (keys, values):
        x.view(torch.uint8).random_(0, 255, generator=torch.Generator().manual_seed(1))
    wanted = [x.view(torch.uint8).clone() for x in (keys, values)]
    src, dst = torch.tensor([0, 4, 0, -1], dtype=torch.int32), torch.tensor([8, 1, 2, 3], dtype=torch.int32)
    for x in wanted:
        x[:, [8, 1, 2]] = x[:, [0, 4, 0]]
    cuda_ops.copy_pages(keys, values, src, dst)
    assert all(torch.equal(x.view(torch.uint8), y) for x, y in zip((keys, values), wanted, strict=True))


def test_refusals_name_the_numbers(cuda_ops: Ops) -> None:
    shape = Shape()
    batch = make_batch(cuda_ops, shape, cuts_of(shape, [(19, 20)]))

    def call(num_heads: int, window: int = 0) -> Tensor:
        options: dict[str, Any] = {"num_heads": num_heads, "scale": 1.0, "sliding_window": window}
        return cuda_ops.paged_attention(**batch, **options)

    with pytest.raises(ValueError, match="5 query heads can't share 2 key-value heads"):
        call(5)
    with pytest.raises(ValueError, match="sliding_window is -1"):
        call(6, -1)
    batch["qkv"] = torch.zeros(1, shape.columns + 8, dtype=BF16)[:, 4:-4]
    with pytest.raises(ValueError, match="multiples of 16 bytes"):
        call(6)
