"""What the CUDA kernels' accesses cost each memory, counted by the emulator, beside the least they could.

    python -m tests.bench.accesses [--cases decode,int4] [--save]

A property of the code on small shapes, no measurement: no GPU and no time is in it (tests/support/simt/accesses.py). A
case's first row sums its kernel: bytes that left device memory (different sectors of 32 bytes) over those that the op's
contract needs. The rows below are the source lines that waste the most, in wavefronts of shared memory or in sectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, Ops, PackedLinear, QuantizedLinear
from tests.bench.machine import save
from tests.bench.report import table
from tests.ops.batches import Chunk, Shape, make_batch, sequence
from tests.ops.quantized import Kind, random_weight
from tests.support.cuda import emulated_ops
from tests.support.simt.accesses import Kernel, Site, counting

F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
SPACES = ("shared", "device")
WORST = 6  # lines of a case
WASTE = 0.02  # of the kernel's traffic, from which a line is named


@dataclass(frozen=True)
class Case:
    """One call whose hot kernel's name starts with `kernel`; it has to read and write so many bytes."""

    name: str
    kernel: str
    read: int
    written: int
    call: Callable[[], object]


def attention(ops: Ops) -> Iterator[Case]:
    shapes = {
        "d128 gqa8": Shape(8, 1, 128),
        "d64 gqa8": Shape(8, 1, 64),
        "d128 mha": Shape(4, 4, 128),
        "d128 gqa4": Shape(8, 2, 128),
        "d128 gqa8 int8": Shape(8, 1, 128, cache=INT8),
        "d128 gqa8 fp8": Shape(8, 1, 128, cache=FP8),
        "d64 mha int8": Shape(4, 4, 64, cache=INT8),
        "d80 mha": Shape(4, 4, 80),
        "d256 gqa4": Shape(4, 1, 256),
    }
    cuts = {"decode": [(299, 300), (1023, 1024)], "prefill": [(100, 292), (0, 64)]}
    for name, shape in shapes.items():
        for kind, sequences in cuts.items():
            chunks = [Chunk(sequence(shape, end, i), start, end) for i, (start, end) in enumerate(sequences)]
            batch = make_batch(ops, shape, chunks)
            token = shape.head_dim * shape.cache.itemsize + 2 * (shape.cache.itemsize == 1)
            cached = sum(chunk.end for chunk in chunks) * 2 * shape.num_kv_heads * token
            rows = 2 * shape.num_heads * shape.head_dim * sum(chunk.end - chunk.start for chunk in chunks)

            def call(batch: dict[str, Tensor] = batch, shape: Shape = shape) -> object:
                return ops.paged_attention(**batch, num_heads=shape.num_heads, scale=shape.head_dim**-0.5)

            yield Case(f"{kind} {name}", f"{kind}_kernel", cached + rows, rows, call)


def products(ops: Ops) -> Iterator[Case]:
    n, k = 512, 2048
    kinds = {
        "w4a16 g128": (Kind(4, 128, True), Activations.FLOAT, "quantized_float_kernel", (1, 8, 16, 32, 64)),
        "w4a16 g32 asym": (Kind(4, 32, False), Activations.FLOAT, "quantized_float_kernel", (1, 16)),
        "w8a16": (Kind(8, 0, True), Activations.FLOAT, "quantized_float_kernel", (1, 64)),
        "w8a8": (Kind(8, 0, True), Activations.INT8, "quantized_int8_kernel", (1, 64)),
        "w4a8 g32": (Kind(4, 32, True), Activations.INT8, "quantized_int8_kernel", (1, 64)),
        "llm.int8": (Kind(8, 0, True), Activations.LLM_INT8, "quantized_int8_kernel", (1, 64)),
    }
    for name, (kind, activations, kernel, rows) in kinds.items():
        packed = ops.pack_quantized(random_weight(kind, n, k), activations)
        for m in rows:
            yield product(ops, f"{name} m={m}", kernel, packed, m)
    packed = ops.pack_quantized(random_weight(Kind(8, 0, True), n, k), Activations.INT8)
    x = torch.randn(64, k).bfloat16()
    codes = x.numel() + x.numel() // 32 * 8  # a scale and a sum for every 32
    yield Case("quantise x for w8a8", "quantize_blocks_kernel", x.nbytes, codes, lambda: ops.linear(x, packed))
    floats = PackedLinear((torch.randn(n, k) * k**-0.5).bfloat16(), n, k)
    for m in (1, 16, 64):
        yield product(ops, f"bf16 linear m={m}", "linear_kernel", floats, m)


def product(ops: Ops, name: str, kernel: str, weight: QuantizedLinear | PackedLinear, m: int) -> Case:
    x = torch.randn(m, weight.in_features).bfloat16()
    out = m * weight.out_features * 2
    return Case(name, kernel, weight.data.nbytes + x.nbytes, out, lambda: ops.linear(x, weight))


def rows_of_tokens(ops: Ops) -> Iterator[Case]:
    t, h = 32, 2048
    x, weight = torch.randn(t, h), torch.randn(h)
    half = x.bfloat16()
    yield Case(
        "rms_norm", "norm_kernel", x.nbytes + weight.nbytes, t * h * 2, lambda: ops.rms_norm(x, weight, 1e-5, BF16)
    )
    yield Case(
        "add_rms_norm",
        "norm_kernel",
        2 * x.nbytes + weight.nbytes,
        x.nbytes + t * h * 2,
        lambda: ops.add_rms_norm(x, x.clone(), weight, 1e-5, BF16),  # type: ignore[attr-defined]
    )
    yield Case(
        "layer_norm",
        "norm_kernel",
        x.nbytes + 2 * h * 4,
        t * h * 2,
        lambda: ops.layer_norm(x, weight, weight, 1e-5, BF16),
    )
    gated = PackedLinear(torch.randn(2 * 512, 128).bfloat16(), 1024, 128, gated=True)
    few = torch.randn(t, 128).bfloat16()
    yield Case(
        "gated activation",
        "epilogue",
        t * 1024 * 2,
        t * 512 * 2,
        lambda: emulated_ops().linear(few, gated, act=Activation.SILU),
    )
    for name, shape in {"d128": Shape(8, 2, 128), "d64 int8": Shape(8, 2, 64, cache=INT8)}.items():
        qkv = torch.randn(t, shape.columns).bfloat16()
        keys, values = ops.empty_cache(shape.layout(4))
        slots, positions = torch.arange(t).int(), torch.arange(t).int()
        angles = torch.randn(64, shape.head_dim)
        token = shape.head_dim * shape.cache.itemsize + 2 * (shape.cache.itemsize == 1)
        rotated = t * (shape.num_heads + shape.num_kv_heads) * shape.head_dim * 2

        def call(
            arguments: tuple[Tensor, ...] = (qkv, keys[0], values[0], slots, positions, angles), heads: int = 8
        ) -> object:
            return ops.rope_and_cache(*arguments, num_heads=heads)

        cached = 2 * t * shape.num_kv_heads * token
        # The rotated keys need not go back to qkv, but the contract says so.
        yield Case(f"rope and cache {name}", "rope", qkv.nbytes + t * shape.head_dim * 4, rotated + cached, call)
    table_ = torch.randn(256, h).bfloat16()
    ids = torch.randint(256, (t,)).int()
    yield Case("embedding", "embedding", t * h * 2, t * h * 4, lambda: ops.embedding(ids, table_))
    heads = half.clone()
    w = torch.ones(h)
    yield Case(
        "head_norm", "head_norm", half.nbytes, half.nbytes, lambda: ops.head_norm_(heads, w, None, 1e-5, size=128)
    )


def sampling(ops: Ops) -> Iterator[Case]:
    rows, vocab = 4, 8192
    logits = torch.randn(rows, vocab) * 4
    zeros = torch.zeros(rows, dtype=torch.int32)
    nothing = torch.zeros(0, dtype=torch.int32), torch.zeros(0), torch.zeros(0)
    settings = {"greedy": (0.0, 0, 1.0), "top-p": (1.0, 0, 0.9), "top-k": (1.0, 40, 1.0)}
    for name, (temperature, top_k, top_p) in settings.items():

        def call(temperature: float = temperature, top_k: int = top_k, top_p: float = top_p) -> object:
            parameters = torch.full((rows,), temperature), torch.full((rows,), top_k).int(), torch.full((rows,), top_p)
            seeds = torch.arange(rows)
            starts = torch.zeros(rows + 1, dtype=torch.int32)
            return ops.sample(logits, *parameters, torch.zeros(rows), seeds, zeros, starts, *nothing, None, None)

        yield Case(f"sample {name}", "", logits.nbytes, 4 * rows, call)
    yield Case("logprobs", "", logits.nbytes, 0, lambda: ops.logprobs(logits, zeros, 5))


def adapters(ops: Ops) -> Iterator[Case]:
    n, k, rank = 512, 1024, 16
    weight = PackedLinear(torch.zeros(n, k).bfloat16(), n, k)
    adapted = ops.lora_table(weight, (n,), adapters=2, rank=rank, dtype=BF16)
    for adapter in range(2):
        adapted.put(adapter, 0, torch.randn(rank, k).bfloat16(), torch.randn(rank, n).bfloat16(), 0.5)
    for m in (2, 32):
        x, y = torch.randn(m, k).bfloat16(), torch.randn(m, n)
        of = (torch.arange(m) % 2).int()

        def call(y: Tensor = y, x: Tensor = x, of: Tensor = of) -> object:
            return ops.lora_add_(y, x, of, adapted)

        factors = 2 * rank * (n + k) * 2
        yield Case(f"lora m={m}", "", factors + x.nbytes + y.nbytes, y.nbytes, call)


def experts(ops: Ops) -> Iterator[Case]:
    count, top_k, hidden, width = 8, 2, 256, 256
    for name, kind in {"bf16": None, "w4": Kind(4, 128, True)}.items():

        def weight(n: int, k: int, gated: bool, kind: Kind | None = kind) -> QuantizedLinear | PackedLinear:
            if kind is None:
                return ops.pack_linear((torch.randn(n, k) * k**-0.5).bfloat16(), gated=gated)
            return ops.pack_quantized(random_weight(kind, n, k), Activations.FLOAT, gated=gated)

        up, down = weight(count * 2 * width, hidden, True), weight(count * hidden, width, False)
        for m in (2, 64):
            x, residual, scores = torch.randn(m, hidden).bfloat16(), torch.randn(m, hidden), torch.randn(m, count)
            touched = len(set(scores.topk(top_k).indices.flatten().tolist()))
            weights = (up.data.nbytes + down.data.nbytes) * touched // count

            def call(
                arguments: tuple[Tensor, Tensor, Tensor] = (residual, x, scores),
                weights: tuple[QuantizedLinear | PackedLinear, ...] = (up, down),
            ) -> object:
                form = {"experts": count, "top_k": top_k, "renormalise": True, "act": Activation.SILU}
                return ops.moe_add_(*arguments, *weights, **form)

            needed = weights + x.nbytes + residual.nbytes + scores.nbytes
            yield Case(f"moe {name} m={m}", "", needed, residual.nbytes, call)


def cases() -> Iterator[Case]:
    ops = emulated_ops(invariant=True)
    for family in (attention, products, rows_of_tokens, sampling, adapters, experts):
        torch.manual_seed(0)
        yield from family(ops)


def wasted(site: Site) -> int:
    return site.cost - site.ideal


def lines(kernel: Kernel) -> Iterator[list[str]]:
    for site in sorted(kernel.sites, key=wasted, reverse=True)[:WORST]:
        share = wasted(site) / kernel.sum("cost", site.space)
        if share >= WASTE:
            cost = [f"{site.excess:.2f}", "-"] if site.space == "shared" else ["-", f"{site.excess:.2f}"]
            what = f"{site.space} {site.access} {site.widest} B"
            yield [f"  {site.line} {what}", f"{site.requests:,}", *cost, f"{share:.0%}"]


def ratio(a: int, b: int) -> str:
    return f"{a / b:.2f}" if b else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="only cases whose name has one of these in it")
    parser.add_argument("--save", action="store_true", help="write results/cuda_accesses.json")
    arguments = parser.parse_args()
    wanted = arguments.cases.split(",")
    rows, result = [], []
    for case in cases():
        if not any(part in case.name for part in wanted):
            continue
        with counting() as counted:
            case.call()
        kernels = [kernel for kernel in counted.kernels if kernel.name.startswith(case.kernel)]
        assert kernels, f"{case.name}: no kernel {case.kernel} among {[kernel.name for kernel in counted.kernels]}"
        for kernel in kernels:
            moved = kernel.read_sectors + kernel.written_sectors
            needed = case.read + case.written
            rows.append(
                [
                    f"{case.name}: {kernel.name}",
                    f"{sum(site.requests for site in kernel.sites):,}",
                    *(ratio(kernel.sum("cost", space), kernel.sum("ideal", space)) for space in SPACES),
                    f"{moved / needed:.2f}" if case.kernel else f"{moved:,} B",
                ]
            )
            rows.extend(lines(kernel))
            figures = asdict(kernel) | {"sites": [asdict(site) for site in kernel.sites if wasted(site)]}
            sums = {f"{space}_{what}": kernel.sum(what, space) for space in SPACES for what in ("cost", "ideal")}
            result.append({"case": case.name, "needed": needed} | sums | figures)
    header = ["case: kernel", "accesses", "wavefronts/least", "sectors/least", "bytes moved/needed"]
    print(table("Accesses of emulated kernels, counted; of a line its waste as a share of the kernel's", header, rows))
    if arguments.save:
        save("cuda_accesses", {"cases": result})


if __name__ == "__main__":
    main()
