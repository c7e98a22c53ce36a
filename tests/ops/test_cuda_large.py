"""Kernels at the sizes of large devices: places beyond 2^31 elements and 2^32 bytes, and contexts of a million tokens.

Memory is reserved and never touched but where a test puts something, so that a cache of 80 GB costs a few pages. Every
result is held to that of the same call on small tensors, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, PackedLinear
from octavo_engine.ops.cuda import CudaOps
from octavo_engine.ops.cuda_lora import SlotTable
from tests.ops.batches import Chunk, Shape, make_batch, sequence
from tests.ops.quantized import Kind, random_weight
from tests.ops.test_cuda_sampling import sample, settings
from tests.support.cuda import emulated_ops
from tests.support.sparse import sparse_zeros

F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
FAR = 1 << 32  # elements: beyond what 32 bits count, of any size


@pytest.fixture(scope="module")
def ops() -> CudaOps:
    return emulated_ops(check=False)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- the cache ---------------------------------------------------------------------------------------------------

CACHES = [(BF16, BF16, 128), (BF16, INT8, 128), (F16, FP8, 64), (F32, F32, 64), (F16, F16, 256), (BF16, BF16, 192)]


def shape_of(activation: torch.dtype, cache: torch.dtype, head_dim: int) -> Shape:
    return Shape(16, 8, head_dim, activation=activation, cache=cache)


def large(ops: CudaOps, small: Tensor, pages: int) -> Tensor:
    """The pages of a layer's cache at the end of one of `pages`."""
    cache = sparse_zeros((pages, *small.shape[1:]), small.dtype)
    cache[-len(small) :].view(torch.uint8).copy_(small.view(torch.uint8))
    return cache


@pytest.mark.parametrize(("activation", "cache", "head_dim"), CACHES)
@pytest.mark.parametrize("whole", [False, True], ids=["decode", "prefill"])
def test_attention_reads_pages_at_the_end_of_a_large_cache(
    ops: CudaOps, activation: torch.dtype, cache: torch.dtype, head_dim: int, whole: bool
) -> None:
    shape = shape_of(activation, cache, head_dim)
    chunks = [Chunk(sequence(shape, n, n), 0 if whole else n - 1, n) for n in (33, 70)]
    batch: dict[str, Any] = make_batch(ops, shape, chunks)
    options = {"num_heads": shape.num_heads, "scale": head_dim**-0.5}
    wanted = ops.paged_attention(**batch, **options)
    keys, values = batch["keys"], batch["values"]
    pages = FAR // keys[0].numel() + len(keys) + 1
    moved = {
        **batch,
        "keys": large(ops, keys, pages),
        "values": large(ops, values, pages),
        "page_table": batch["page_table"] + (pages - len(keys)),
    }
    assert torch.equal(ops.paged_attention(**moved, **options), wanted)


@pytest.mark.parametrize(("activation", "cache", "head_dim"), CACHES)
def test_keys_and_values_are_written_to_slots_at_the_end(
    ops: CudaOps, activation: torch.dtype, cache: torch.dtype, head_dim: int
) -> None:
    shape = shape_of(activation, cache, head_dim)
    qkv, positions = sequence(shape, 5, 1), torch.arange(5, dtype=torch.int32)
    angles = randn(5, head_dim, seed=2)
    keys, values = (x[0] for x in ops.empty_cache(shape.layout(2)))
    pages = FAR // keys[0].numel() + 2
    far = [sparse_zeros((pages, *keys.shape[1:]), cache) for _ in range(2)]
    slots = torch.tensor([3, 31, 16, -1, 0], dtype=torch.int32)
    moved = torch.where(slots < 0, slots, slots + (pages - 2) * 16)
    got, wanted = qkv.clone(), qkv.clone()
    ops.rope_and_cache(wanted, keys, values, slots, positions, angles, num_heads=shape.num_heads)
    ops.rope_and_cache(got, far[0], far[1], moved, positions, angles, num_heads=shape.num_heads)
    assert torch.equal(got, wanted)
    for x, y in zip(far, (keys, values), strict=True):
        assert torch.equal(x[-2:].view(torch.uint8), y.view(torch.uint8))


def test_pages_are_copied_in_a_cache_of_all_layers(ops: CudaOps) -> None:
    keys, values = (sparse_zeros((3, (1 << 31) // (16 * 64), 1, 16, 64), BF16) for _ in range(2))
    for cache in (keys, values):
        cache[2, -1] = randn(1, 16, 64, dtype=BF16)
    pages = torch.tensor([keys.shape[1] - 1], dtype=torch.int32)
    ops.copy_pages(keys, values, pages, pages - 1)
    for cache in (keys, values):
        assert cache[2, -1].any()
        assert torch.equal(cache[2, -2], cache[2, -1])
        assert not cache[0, -2].any()


# ---- contexts ----------------------------------------------------------------------------------------------------

LONG = Shape(4, 1, 64)
# Where the number of keys in a chunk changes, and the lengths around it.
LENGTHS = [255, 256, 257, 4095, 4096, 4097, 8191, 8192, 16384, 16385, 65537]


def repeated(ops: CudaOps, length: int, tokens: int) -> tuple[dict[str, Any], Tensor]:
    """The last tokens of a sequence whose pages are one and the same, and their attention.

    What a row sees of it are a whole number of equal pages and the beginning of one more.
    """
    batch: dict[str, Any] = make_batch(ops, LONG, [Chunk(sequence(LONG, 16, 7), 0, 16)])
    page, pages = batch["page_table"][0, 0], -(-length // 16)
    qkv = sequence(LONG, tokens, 8) * 4
    batch |= {
        "qkv": qkv,
        "page_table": page.expand(1, pages).contiguous(),
        "query_start": torch.tensor([0, tokens], dtype=torch.int32),
        "seq_lens": torch.tensor([length], dtype=torch.int32),
    }
    k, v = (batch[name][page, 0].double() for name in ("keys", "values"))
    q = qkv[:, : 4 * 64].double().unflatten(1, (4, 64))
    seen = torch.arange(length - tokens, length) + 1
    count = (seen // 16).unsqueeze(1) + (
        torch.arange(16) < (seen % 16).unsqueeze(1)
    )  # [tokens, 16]: times each is seen
    scores = torch.einsum("thd,kd->thk", q, k) / 8
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * count.unsqueeze(1)
    return batch, ((weights / weights.sum(-1, keepdim=True)) @ v).flatten(1)


OPTIONS: dict[str, Any] = {"num_heads": 4, "scale": 0.125}


def last_of(batch: dict[str, Any]) -> dict[str, Any]:
    """The last token alone, which the decode kernel takes."""
    return {**batch, "qkv": batch["qkv"][-1:], "query_start": torch.tensor([0, 1], dtype=torch.int32)}


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_at_the_end_of_a_long_context(ops: CudaOps, length: int) -> None:
    """From the decode kernel and from the prefill kernel: of the right value, and the same bits."""
    batch, wanted = repeated(ops, length, 17)  # 68 rows: the prefill kernel's
    whole = ops.paged_attention(**batch, **OPTIONS)
    torch.testing.assert_close(whole.double(), wanted, atol=2e-2, rtol=2e-2)
    assert torch.equal(ops.paged_attention(**last_of(batch), **OPTIONS)[0], whole[-1])


def test_a_million_tokens(ops: CudaOps) -> None:
    """A window keeps it short: the places are those of the end. Wider than the context, it changes nothing."""
    batch, _ = repeated(ops, 1 << 20, 17)
    whole = ops.paged_attention(**batch, **OPTIONS, sliding_window=4096)
    assert torch.equal(ops.paged_attention(**last_of(batch), **OPTIONS, sliding_window=4096)[0], whole[-1])
    assert whole.isfinite().all()
    batch, wanted = repeated(ops, 1 << 17, 1)
    for window in (0, (1 << 17) + 1, 1 << 30):
        got = ops.paged_attention(**batch, **OPTIONS, sliding_window=window)
        torch.testing.assert_close(got.double(), wanted, atol=2e-2, rtol=2e-2)


def test_positions_of_long_contexts_are_rotated(ops: CudaOps) -> None:
    """A table of a million positions is beyond 2^27 elements; a row of qkv may lie anywhere."""
    shape, last = Shape(2, 1, 128), (1 << 20) - 1
    table = sparse_zeros((last + 1, 128), F32)
    table[last] = randn(128, seed=3)
    keys, values = (x[0] for x in ops.empty_cache(shape.layout(1)))
    got, slots = sequence(shape, 1, 4), torch.tensor([5], dtype=torch.int32)
    wanted, at = got.clone(), torch.tensor([last], dtype=torch.int32)
    ops.rope_and_cache(got, keys, values, slots, at, table, num_heads=2)
    ops.rope_and_cache(wanted, keys, values, slots, at * 0, table[-1:].contiguous(), num_heads=2)
    assert torch.equal(got, wanted)


def test_a_page_table_beyond_32_bits_is_refused(ops: CudaOps) -> None:
    shape = Shape(2, 1, 64)
    batch: dict[str, Any] = make_batch(ops, shape, [Chunk(sequence(shape, 3, 1), 2, 3)])
    many = 1 << 15
    batch |= {
        "qkv": sparse_zeros((many, shape.columns), BF16),
        "page_table": sparse_zeros((many, 1 << 16), torch.int32),
        "query_start": torch.arange(many + 1, dtype=torch.int32),
        "seq_lens": torch.zeros(many, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=r"page_table has shape \[32768, 65536\].*max_num_seqs"):
        ops.paged_attention(**batch, num_heads=2, scale=1.0)


# ---- rows of tensors -----------------------------------------------------------------------------------------------


def apart(x: Tensor) -> Tensor:
    """x with rows so far from each other that the third begins beyond 2^32 elements."""
    rows = sparse_zeros((3, FAR // 2 + 64), x.dtype)[: len(x), : x.shape[1]]
    return rows.copy_(x)


X, W = randn(3, 64, seed=5), randn(64, seed=6)
POSITIONS = torch.tensor([2, 0, 1], dtype=torch.int32)
ROWS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "cast": lambda ops, x: ops.cast(x, BF16),
    "rms_norm": lambda ops, x: ops.rms_norm(x, W, 1e-5, BF16),
    "layer_norm": lambda ops, x: ops.layer_norm(x, W, W, 1e-5, F32),
    "clip": lambda ops, x: (ops.clip_(x, 0.5), x.clone())[1],
    "scale_rows": lambda ops, x: (ops.scale_rows_(x, POSITIONS, W, width=60), x.clone())[1],
    "head_norm": lambda ops, x: (ops.head_norm_(x, W[:32].contiguous(), None, 1e-5, size=16, start=8), x.clone())[1],
    "rms_norm_add": lambda ops, x: (residual := X.clone(), ops.rms_norm_add_(residual, x, W, 1e-5))[0],
    "logprobs": lambda ops, x: ops.logprobs(x, POSITIONS, 5)[3],
    "sample": lambda ops, x: sample(ops, x, settings(3, 2)),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_lie_far_apart(ops: CudaOps, name: str) -> None:
    assert torch.equal(ROWS[name](ops, apart(X)), ROWS[name](ops, X.clone()))


def test_products_of_rows_that_lie_far_apart(ops: CudaOps) -> None:
    weight, packed = (
        randn(32, 64, seed=7),
        ops.pack_quantized(random_weight(Kind(4, 32, False), 32, 64), Activations.INT8),
    )
    for dtype in (F32, BF16):
        x, w = X.to(dtype), weight.to(dtype)
        out, far = torch.zeros(3, 32), apart(torch.zeros(3, 32))
        ops._linear(out, x, w, None, int(Activation.NONE), False, False, False)
        ops._linear(far, apart(x), w, None, int(Activation.NONE), False, False, False)
        assert torch.equal(far, out)
        assert torch.equal(ops.linear(apart(x), packed), ops.linear(x, packed))


@pytest.mark.parametrize(("dtype", "rows", "width"), [(BF16, 262144, 16384), (F32, 262144, 8200)])
def test_embeddings_of_large_vocabularies(ops: CudaOps, dtype: torch.dtype, rows: int, width: int) -> None:
    table = sparse_zeros((rows, width), dtype)
    table[-1] = randn(width, seed=8).to(dtype)
    ids = torch.tensor([rows - 1, 0], dtype=torch.int32)
    got = ops.embedding(ids, PackedLinear(table, rows, width), 2.0)
    assert torch.equal(got[0], table[-1].float() * 2)
    assert not got[1].any()


def test_embeddings_of_packed_vocabularies(ops: CudaOps) -> None:
    small = ops.pack_quantized(random_weight(Kind(8, 0, True), 16, 16384), Activations.FLOAT)
    tiles = (1 << 32) // small.data.shape[1] + 2
    data = sparse_zeros((tiles, small.data.shape[1]), torch.uint8)
    data[-1] = small.data[0]
    far = replace(small, data=data, out_features=16 * tiles)
    ids = torch.tensor([3, 15], dtype=torch.int32)
    assert torch.equal(ops.embedding(ids + 16 * (tiles - 1), far), ops.embedding(ids, small))


# ---- stacks of weights ---------------------------------------------------------------------------------------------


EXPERTS = 4096  # rather than 128 with rows 32 times as long, which would take longer


def stacks() -> Iterator[tuple[torch.dtype, Kind | None, Activations, int]]:
    """K such that the experts' gates and ups are more than 2^32 elements or bytes."""
    for dtype in (F32, BF16):
        yield dtype, None, Activations.FLOAT, FAR // (EXPERTS * 32) + 64
    for dtype, kind, activations in product((F32, BF16), (Kind(4, 0, True), Kind(8, 0, True)), (Activations.FLOAT,)):
        yield dtype, kind, activations, FAR // (EXPERTS * 32) * 8 // kind.bits + 64
    yield BF16, Kind(8, 0, True), Activations.INT8, FAR // (EXPERTS * 32) + 64


@pytest.mark.parametrize(("dtype", "kind", "activations", "columns"), list(stacks()), ids=str)
def test_the_last_of_many_experts(
    ops: CudaOps, dtype: torch.dtype, kind: Kind | None, activations: Activations, columns: int
) -> None:
    def weight(n: int, k: int, *, gated: bool) -> Any:
        plain = randn(n, k, seed=n).to(dtype) * k**-0.5
        if kind is None:
            return ops.pack_linear(plain, gated=gated)
        return ops.pack_quantized(random_weight(kind, n, k, n), activations, gated=gated)

    def stack(one: Any) -> Any:
        """As the last one of all; the rows of a float weight's gates come before all ups."""
        parts = one.data.chunk(2) if kind is None and one.gated else (one.data,)
        data = sparse_zeros((EXPERTS * len(one.data), one.data.shape[1]), one.data.dtype)
        for whole, part in zip(data.chunk(len(parts)), parts, strict=True):
            whole[-len(part) :] = part
        return replace(one, data=data, out_features=EXPERTS * one.out_features)

    x, up, down = randn(1, columns, seed=9).to(dtype), weight(32, columns, gated=True), weight(32, 16, gated=False)
    form: dict[str, Any] = {"top_k": 1, "renormalise": True, "act": Activation.SILU}
    wanted, got = torch.zeros(1, 32), torch.zeros(1, 32)
    ops.moe_add_(wanted, x, torch.zeros(1, 1), up, down, experts=1, **form)
    scores = torch.arange(float(EXPERTS)).unsqueeze(0)
    ops.moe_add_(got, x, scores, stack(up), stack(down), experts=EXPERTS, **form)
    assert wanted.any()
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_the_last_of_many_adapters(ops: CudaOps, dtype: torch.dtype) -> None:
    k, n, rank = 160, 48, 16
    plain = PackedLinear(torch.zeros(n, k, dtype=dtype), n, k)
    one = ops.lora_table(plain, [n], adapters=1, rank=rank, dtype=dtype)
    one.put(0, 0, randn(rank, k, seed=1).to(dtype), randn(rank, n, seed=2).to(dtype), 0.5)
    many = ops.lora_table(plain, [n], adapters=1, rank=rank, dtype=dtype)
    assert isinstance(one, SlotTable)
    assert isinstance(many, SlotTable)
    adapters = FAR // (rank * n) + 1  # of the smaller of the two
    for name in ("down", "up", "ranks", "scales"):
        slots = getattr(one, name)
        setattr(many, name, sparse_zeros((adapters, *slots.shape[1:]), slots.dtype))
        getattr(many, name)[-1] = slots[0]
    for rows in (3, 140):  # narrow tiles and wide ones
        x, at = randn(rows, k, seed=3).to(dtype), torch.zeros(rows, dtype=torch.int32)
        got, wanted = torch.zeros(rows, n), torch.zeros(rows, n)
        ops.lora_add_(wanted, x, at, one)
        ops.lora_add_(got, x, at + adapters - 1, many)
        assert wanted.any()
        assert torch.equal(got, wanted)
