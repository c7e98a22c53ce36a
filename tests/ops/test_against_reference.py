"""Every op of every instruction set against plain torch, at awkward shapes. One table: a name and a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, LinearWeight, Ops
from tests.ops import caches
from tests.ops.batches import Chunk, Shape, attend, empty_cache, make_batch, sequence

F32, BF16, F16, INT8 = torch.float32, torch.bfloat16, torch.float16, torch.int8

# A case runs an op on either implementation; results must agree within (absolute, relative).
Case = Callable[[Ops], list[Tensor]]
Tolerance = tuple[float, float]
FLOAT: Tolerance = (2e-5, 2e-5)
# bfloat16 carries 8 bits: two sides of a tie round to neighbours, 2^-7 apart at most.
BFLOAT: Tolerance = (1e-4, 2**-7)
# Probabilities too are rounded to bfloat16: 2^-9 of the values' size (at most about 4 here).
BFLOAT_ATTENTION: Tolerance = (1.2e-2, 2**-7)
# Or to 1/510 of a block's largest, where many may add up.
INT8_ATTENTION: Tolerance = (3e-2, 2**-7)


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# ---- attention -------------------------------------------------------------------------------------------------


def attention(shape: Shape, cuts: list[tuple[int, int]], **options: Any) -> Case:
    chunks = [Chunk(sequence(shape, end, seed), start, end) for seed, (start, end) in enumerate(cuts)]
    return lambda ops: attend(ops, shape, chunks, **options)


def attention_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    page = 16
    lengths = (1, 7, 17, page - 1, page, page + 1, 33, 130, 300)
    decode = [(n - 1, n) for n in lengths]
    prefill = [(0, n) for n in lengths[:-1]]
    mixed = [(0, 33), (129, 130), (17, 130), (0, 1), (299, 300), (7, 8), (100, 164)]
    types = {
        "bf16": (BF16, BF16),
        "f32": (F32, F32),
        "f16": (F32, F16),
        "f32-bf16": (F32, BF16),
        "bf16-f32": (BF16, F32),
        "bf16-int8": (BF16, INT8),
        "f32-int8": (F32, INT8),
    }
    for name, (activation, cache) in types.items():
        shape = Shape(activation=activation, cache=cache)
        tolerance = BFLOAT_ATTENTION if BF16 in (activation, cache) else FLOAT
        tolerance = INT8_ATTENTION if cache == INT8 else tolerance
        for cuts_name, cuts in (("decode", decode), ("prefill", prefill), ("mixed", mixed)):
            yield f"{name}-{cuts_name}", attention(shape, cuts), tolerance
        for options in (
            {"sliding_window": 1},
            {"sliding_window": 40},
            {"softcap": 5.0},
            {"alibi_slopes": torch.tensor([2.0**-i for i in range(6)])},
            {"alibi_slopes": torch.tensor([0.7**i for i in range(6)], dtype=BF16)},
            {"sliding_window": 33, "softcap": 3.0, "alibi_slopes": torch.full((6,), 0.1)},
        ):
            kinds = [f"{key}-{value.dtype}" if isinstance(value, Tensor) else key for key, value in options.items()]
            yield f"{name}-{'-'.join(kinds)}", attention(shape, mixed, **options), tolerance
    for head_dim, (heads, kv_heads) in product((2, 8, 10, 64, 80, 96, 128, 256), ((2, 2), (6, 2), (8, 1))):
        for cache in (BF16, F32, F16, INT8):
            if cache == INT8 and head_dim % 4:
                continue
            activation = BF16 if cache in (BF16, INT8) else F32
            shape = Shape(heads, kv_heads, head_dim, activation=activation, cache=cache)
            tolerance = {BF16: BFLOAT_ATTENTION, INT8: INT8_ATTENTION}.get(cache, FLOAT)
            yield f"{cache}-d{head_dim}-{heads}on{kv_heads}", attention(shape, [(0, 33), (49, 50), (3, 7)]), tolerance
    # Scores so far apart that a row's reference must move from block to block, and most keys weigh nothing. Not for
    # float32 queries that meet bfloat16 keys: their rounding alone moves such a softmax.
    for name in ("bf16", "f32", "f16", "bf16-f32", "bf16-int8"):
        activation, cache = types[name]
        tolerance = BFLOAT_ATTENTION if activation == BF16 else FLOAT
        tolerance = INT8_ATTENTION if cache == INT8 else tolerance
        yield f"{name}-sharp", attention(Shape(activation=activation, cache=cache), mixed, scale=1.0), tolerance
    yield "page-48", attention(Shape(page_size=48), mixed), BFLOAT_ATTENTION
    yield "71-heads-share-one", attention(Shape(71, 1, 64), [(0, 9), (40, 41)]), BFLOAT_ATTENTION


# ---- rope, norms, pages ----------------------------------------------------------------------------------------


def rope(shape: Shape, tokens: int, rotary: int, interleaved: bool) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        qkv = sequence(shape, tokens, seed=3)
        keys, values = empty_cache(ops, shape, 5)
        slots = torch.randperm(5 * shape.page_size, generator=torch.Generator().manual_seed(1))[:tokens].int()
        positions = torch.arange(tokens, dtype=torch.int32) * 3
        angles = torch.arange(3.0 * tokens).outer(torch.arange(1.0, rotary // 2 + 1) ** -1)
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1) if rotary else None
        ops.rope_and_cache(
            qkv, keys, values, slots, positions, cos_sin, num_heads=shape.num_heads, interleaved=interleaved
        )
        return [x.nan_to_num(1e9) for x in (qkv, *caches.read(keys, values, torch.arange(5), shape.head_dim))]

    return run


def rope_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    types = ((BF16, BF16), (F32, F32), (F32, F16), (BF16, F32), (BF16, INT8), (F32, INT8))
    for (activation, cache), interleaved in product(types, (False, True)):
        for head_dim, rotary in ((64, 64), (80, 20), (10, 10), (96, 0)):
            if cache == INT8 and head_dim % 4:
                continue
            shape = Shape(3, 1, head_dim, activation=activation, cache=cache)
            tolerance = FLOAT if activation == F32 and cache in (F32, INT8) else BFLOAT
            if (activation, cache) == (BF16, INT8):  # such a step of bfloat16 can make one of the codes
                tolerance = (4e-2, 2**-7)
            name = f"{activation}-{cache}-d{head_dim}-r{rotary}{'-interleaved' * interleaved}"
            yield name, rope(shape, 37, rotary, interleaved), tolerance


def norm(name: str, rows: int, width: int, out: torch.dtype, *parameters: Tensor | None) -> Case:
    x = randn(rows, width) * 3 + 1
    return lambda ops: [getattr(ops, name)(x, *parameters, 1e-5, out)]


def norm_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    for rows, width, out in product((1, 7, 40), (1, 15, 64, 100, 576, 4097), (F32, BF16)):
        weight, bias = randn(width, seed=1), randn(width, seed=2)
        tolerance = FLOAT if out == F32 else BFLOAT
        yield f"rms-{rows}x{width}-{out}", norm("rms_norm", rows, width, out, weight), tolerance
        yield f"layer-{rows}x{width}-{out}", norm("layer_norm", rows, width, out, weight, bias), tolerance
    yield "layer-plain", norm("layer_norm", 3, 50, F32, None, None), FLOAT


def norm_add(rows: int, width: int) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        residual = randn(rows, width, seed=4)
        ops.rms_norm_add_(residual, randn(rows, width) * 3 + 1, randn(width, seed=1), 1e-5)
        return [residual]

    return run


def head_norm(dtype: torch.dtype, rows: int, groups: int, size: int, start: int, centred: bool, bias: bool) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        x = (randn(rows, start + groups * size + 5) * 3 + 1).to(dtype)
        weight, shift = randn(groups * size, seed=1), randn(groups * size, seed=2) if bias else None
        ops.head_norm_(x, weight, shift, 1e-5, size=size, start=start, centred=centred)
        return [x]

    return run


def head_norm_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    shapes = ((1, 1, 1, 0), (7, 6, 8, 0), (3, 5, 33, 2), (40, 4, 128, 64), (2, 1, 4097, 3))
    for dtype, (rows, groups, size, start), centred in product((F32, BF16), shapes, (False, True)):
        case = head_norm(dtype, rows, groups, size, start, centred, bias=centred and size != 8)
        yield f"{dtype}-{rows}x{groups}x{size}+{start}{'-centred' * centred}", case, FLOAT if dtype == F32 else BFLOAT


def elementwise(name: str, dtype: torch.dtype, rows: int, width: int, *parameters: float) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        x = (randn(rows, width) * 20).to(dtype)
        getattr(ops, name)(x, *parameters)
        return [x]

    return run


def gated_add(rows: int, width: int) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        residual = randn(rows, width, seed=4)
        ops.gated_add_(residual, randn(rows, width), randn(rows, 1, seed=2) * 4)
        return [residual]

    return run


def scale_rows(dtype: torch.dtype, rows: int, width: int) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        x, table = randn(rows, width + 5).to(dtype), randn(300, seed=3)
        positions = torch.arange(rows, dtype=torch.int32) * 7 % 300
        ops.scale_rows_(x, positions, table, width=width)
        return [x]

    return run


def elementwise_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    for rows, width in ((1, 1), (7, 33), (40, 600)):
        yield f"softcap-{rows}x{width}", elementwise("softcap_", F32, rows, width, 30.0), FLOAT
        yield f"gated-add-{rows}x{width}", gated_add(rows, width), FLOAT
        for dtype in (F32, BF16):
            yield f"clip-{rows}x{width}-{dtype}", elementwise("clip_", dtype, rows, width, 8.0), (0.0, 0.0)
            yield f"scale-rows-{rows}x{width}-{dtype}", scale_rows(dtype, rows, width), (0.0, 0.0)


def pages(cache: torch.dtype) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        shape = Shape(cache=cache, head_dim=16)
        keys, values = caches.poisoned(ops, shape.layout(9, num_layers=3))
        slots = torch.arange(9 * shape.page_size)
        for layer in range(3):
            k, v = randn(2, len(slots), shape.num_kv_heads, shape.head_dim, seed=layer) * 20
            caches.write(keys[layer], values[layer], k, v, slots)
        ops.copy_pages(
            keys, values, torch.tensor([0, 4, 0], dtype=torch.int32), torch.tensor([8, 1, 2], dtype=torch.int32)
        )
        read = (caches.read(*layer, torch.arange(9), shape.head_dim) for layer in zip(keys, values, strict=True))
        return [x for layer in read for x in layer]

    return run


# ---- linear, embedding -----------------------------------------------------------------------------------------


def linear(rows: int, n: int, k: int, dtype: torch.dtype, gated: bool, act: Activation, bias: bool, out: Any) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        weight = ops.pack_linear((randn(n, k) * k**-0.5).to(dtype), gated=gated)
        x = randn(rows, k + 3, seed=1).to(BF16 if dtype == BF16 else F32)[:, :k]
        y = ops.linear(x, weight, randn(n, seed=2) if bias else None, act=act, out_dtype=out)
        residual = randn(rows, n, seed=3)
        if not gated:
            ops.linear_add_(residual, x, weight)
        return [y, residual, ops.unpack_linear(weight)]

    return run


def linear_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    sizes = ((1, 32, 64), (3, 40, 7), (7, 2, 33), (17, 96, 130), (33, 64, 64))
    for i, ((rows, n, k), dtype, gated) in enumerate(product(sizes, (F32, BF16, F16), (False, True))):
        out = F32 if i % 2 else None
        act = Activation(i % 5)
        # One rounding to bfloat16 of a sum near zero can be off by a step of its terms' size.
        tolerance = FLOAT if dtype != BF16 else (2e-3, 2**-7)
        yield (
            f"{rows}x{n}x{k}-{dtype}{'-gated' * gated}",
            linear(rows, n, k, dtype, gated, act, i % 3 > 0, out),
            tolerance,
        )


def embedding(dtype: torch.dtype) -> Case:
    ids = torch.tensor([4, 0, 4, 8], dtype=torch.int32)
    return lambda ops: [ops.embedding(ids, randn(9, 33).to(dtype), 1.5)]


def embedding_add(dtype: torch.dtype, width: int) -> Case:
    ids = torch.tensor([4, 0, 4, 8, 1, 2, 3], dtype=torch.int32)

    def run(ops: Ops) -> list[Tensor]:
        residual = randn(7, width)
        ops.embedding_add_(residual, ids, randn(9, width).to(dtype), 0.5)
        return [residual]

    return run


def cast(rows: int, width: int) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        x = randn(rows, width)
        assert ops.cast(x, F32) is x
        return [ops.cast(x, BF16)]

    return run


# ---- mixtures of experts ---------------------------------------------------------------------------------------


def experts_weight(ops: Ops, scheme: str, dtype: torch.dtype, n: int, k: int, seed: int, gated: bool) -> LinearWeight:
    w = (randn(n, k, seed=seed) * k**-0.5).to(dtype)
    if scheme == "float":
        return ops.pack_linear(w, gated=gated)
    bits, group_size, symmetric = (4, 32, False) if scheme.startswith("int4") else (8, 0, True)
    rounded = ops.quantize([w], bits=bits, group_size=group_size, symmetric=symmetric)
    activations = Activations.FLOAT if scheme.endswith("float") else Activations.INT8
    return ops.pack_quantized(rounded, activations, gated=gated)


def moe(rows: int, experts: int, top_k: int, width: int, dtype: torch.dtype, scheme: str, renormalise: bool) -> Case:
    hidden = 64

    def run(ops: Ops) -> list[Tensor]:
        x = randn(rows, hidden).to(BF16 if dtype == BF16 else F32)
        scores = randn(rows, experts, seed=1) * 2
        scores[0, : min(experts, 3)] = scores[0].max() + 1  # equals go by number
        residual = randn(rows, hidden, seed=2)
        up = experts_weight(ops, scheme, dtype, experts * 2 * width, hidden, 3, True)
        down = experts_weight(ops, scheme, dtype, experts * hidden, width, 4, False)
        ops.moe_add_(
            residual,
            x,
            scores,
            up,
            down,
            experts=experts,
            top_k=top_k,
            renormalise=renormalise,
            act=Activation.SILU,
        )
        return [residual]

    return run


def moe_cases() -> Iterator[tuple[str, Case, Tolerance]]:
    shapes = ((1, 4, 2, 32), (7, 1, 1, 16), (33, 9, 4, 48), (130, 20, 8, 32))
    for dtype, scheme in ((F32, "float"), (BF16, "float"), (F16, "float"), (F32, "int4:float"), (BF16, "int8:float")):
        for i, shape in enumerate(shapes):
            tolerance = (5e-5, 5e-5) if dtype != BF16 else (1e-2, 2**-7)
            yield f"{dtype}-{scheme}-{shape}", moe(*shape, dtype, scheme, i % 2 > 0), tolerance
    for scheme in ("int4", "int8"):  # a last bit of an activation can move its code by one, 1/127 of the largest
        yield f"{scheme}", moe(33, 9, 4, 32, F32, scheme, True), (2e-2, 2e-2)


CASES = {
    **{f"attention-{name}": (case, tolerance) for name, case, tolerance in attention_cases()},
    **{f"rope-{name}": (case, tolerance) for name, case, tolerance in rope_cases()},
    **{f"norm-{name}": (case, tolerance) for name, case, tolerance in norm_cases()},
    **{f"norm-add-{rows}x{width}": (norm_add(rows, width), FLOAT) for rows, width in ((1, 1), (7, 100), (40, 576))},
    **{f"head-norm-{name}": (case, tolerance) for name, case, tolerance in head_norm_cases()},
    **{name: (case, tolerance) for name, case, tolerance in elementwise_cases()},
    **{f"moe-{name}": (case, tolerance) for name, case, tolerance in moe_cases()},
    **{f"pages-{cache}": (pages(cache), (0.0, 0.0)) for cache in (F32, BF16, F16, INT8)},
    **{f"linear-{name}": (case, tolerance) for name, case, tolerance in linear_cases()},
    **{f"embedding-{dtype}": (embedding(dtype), (0.0, 0.0)) for dtype in (F32, BF16, F16)},
    **{
        f"embedding-add-{width}-{dtype}": (embedding_add(dtype, width), (0.0, 0.0))
        for width, dtype in product((1, 16, 33), (F32, BF16, F16))
    },
    **{f"cast-{rows}x{width}": (cast(rows, width), (0.0, 0.0)) for rows, width in ((1, 1), (7, 33), (64, 4096))},
}


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(ops: Ops, reference: Ops, name: str) -> None:
    case, (absolute, relative) = CASES[name]
    got, wanted = case(ops), case(reference)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=absolute, rtol=relative)


def test_bfloat16_attention_is_as_close_as_its_rounding(ops: Ops, reference: Ops) -> None:
    """The error of a long row, in root mean square, is under one rounding of the output to bfloat16."""
    shape = Shape()
    chunk = Chunk(sequence(shape, 300, 1), 200, 300)
    exact = attend(reference, replace(shape, activation=F32), [replace(chunk, qkv=chunk.qkv.float())])[0]
    error = attend(ops, shape, [chunk])[0].float() - exact
    assert error.square().mean().sqrt() < 2**-8 * exact.square().mean().sqrt()


def test_int8_attention_loses_what_its_cache_rounds(ops: Ops, reference: Ops) -> None:
    """Keys with outlier channels, as models have: the whole error is the cache's own but for a tenth."""
    shape = Shape(cache=INT8)
    qkv = sequence(shape, 300, 1).float().view(300, -1, shape.head_dim)
    qkv[:, shape.num_heads : shape.num_heads + shape.num_kv_heads, [5, 37]] *= 15
    qkv[:, : shape.num_heads, [5, 37]] /= 8
    chunk = Chunk(qkv.bfloat16().flatten(1), 200, 300)
    float_chunk = replace(chunk, qkv=chunk.qkv.float())
    exact = attend(reference, replace(shape, activation=F32, cache=F32), [float_chunk])[0]
    stored = attend(reference, replace(shape, activation=F32), [float_chunk])[0]
    got = attend(ops, replace(shape, activation=F32), [float_chunk])[0]
    error, floor = ((x - exact).square().mean().sqrt() for x in (got, stored))
    assert floor < 0.1 * exact.square().mean().sqrt()
    assert error < 1.1 * floor


def test_page_numbers_outside_the_cache_are_refused(best_ops: Ops) -> None:
    shape = Shape()
    batch = make_batch(best_ops, shape, [Chunk(sequence(shape, 20, 0), 19, 20)])
    batch["page_table"][0, 1] = 77
    with pytest.raises(ValueError, match=r"page_table\[0, 1\] is 77"):
        best_ops.paged_attention(**batch, num_heads=shape.num_heads, scale=1.0)
