"""Every primitive of prim.cuh, emulated or on a GPU, against the tables of the PTX manual and plain arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.simt import load_emulated

Primitive = Callable[..., None]
BF16, F16, S8 = 0, 1, 2
LANES = torch.arange(32)
GROUP, THREAD = LANES // 4, LANES % 4  # the manual's groupID and threadID_in_group


def as_words(x: Tensor) -> Tensor:
    """Four bytes of the last dimension a word, the first element lowest."""
    return x.contiguous().view(torch.int32)


def fragments(elements: int, row: Callable[[int], Tensor], col: Callable[[int], Tensor], matrix: Tensor) -> Tensor:
    """The registers of 32 lanes: element i of a lane is matrix[row(i), col(i)], packed in order."""
    return as_words(torch.stack([matrix[row(i), col(i)] for i in range(elements)], dim=1))


def a_16bit(matrix: Tensor) -> Tensor:
    return fragments(
        8,
        lambda i: GROUP + (0 if i < 2 or 4 <= i < 6 else 8),
        lambda i: THREAD * 2 + (i & 1) + (0 if i < 4 else 8),
        matrix,
    )


def b_16bit(matrix: Tensor) -> Tensor:
    return fragments(4, lambda i: THREAD * 2 + (i & 1) + (0 if i < 2 else 8), lambda i: GROUP, matrix)


def a_8bit(matrix: Tensor) -> Tensor:
    return fragments(
        16,
        lambda i: GROUP + (0 if i < 4 or 8 <= i < 12 else 8),
        lambda i: THREAD * 4 + (i & 3) + (0 if i < 8 else 16),
        matrix,
    )


def b_8bit(matrix: Tensor) -> Tensor:
    return fragments(8, lambda i: THREAD * 4 + (i & 3) + (0 if i < 4 else 16), lambda i: GROUP, matrix)


def c_32bit(matrix: Tensor) -> Tensor:
    return fragments(4, lambda i: GROUP + (0 if i < 2 else 8), lambda i: THREAD * 2 + (i & 1), matrix)


# The same a second time, in NVIDIA's own notation (CuTe's MMA_Traits of sm80): lane and element, as (size, stride) of
# their digits with the fastest first, give row + rows * column; of B the rows are n.
LAYOUTS = {
    a_16bit: (torch.int16, 16, [(4, 32), (8, 1)], [(2, 16), (2, 8), (2, 128)]),
    b_16bit: (torch.int16, 8, [(4, 16), (8, 1)], [(2, 8), (2, 64)]),
    a_8bit: (torch.int8, 16, [(4, 64), (8, 1)], [(4, 16), (2, 8), (2, 256)]),
    b_8bit: (torch.int8, 8, [(4, 32), (8, 1)], [(4, 8), (2, 128)]),
    c_32bit: (torch.int32, 16, [(4, 32), (8, 1)], [(2, 16), (2, 8)]),
}
OPERANDS = {BF16: (a_16bit, b_16bit), F16: (a_16bit, b_16bit), S8: (a_8bit, b_8bit)}
TYPES = {BF16: torch.bfloat16, F16: torch.float16, S8: torch.int8}


def places(fragment: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Row and column [32, elements] by LAYOUTS."""
    _, rows, lanes, elements = LAYOUTS[fragment]

    def offsets(digits: list[tuple[int, int]]) -> Tensor:
        sums = torch.zeros(1, dtype=torch.int64)
        for size, stride in digits:
            sums = (torch.arange(size)[:, None] * stride + sums).flatten()
        return sums

    index = offsets(lanes)[:, None] + offsets(elements)
    return index % rows, index // rows


@pytest.mark.parametrize("fragment", LAYOUTS)
def test_both_notations_agree(fragment: Callable[[Tensor], Tensor]) -> None:
    dtype, row_and_column = LAYOUTS[fragment][0], places(fragment)
    if fragment in (b_16bit, b_8bit):
        row_and_column = row_and_column[::-1]
    numbers = torch.arange(32, dtype=dtype).expand(32, 32)
    for matrix, place in zip((numbers.T, numbers), row_and_column, strict=True):
        assert torch.equal(fragment(matrix).view(dtype).long(), place)


@pytest.mark.parametrize("kind", [BF16, F16, S8])
def test_each_element_of_mma_is_in_its_place(primitive: Primitive, kind: int) -> None:
    (a_row, a_k), (b_column, b_k), (c_row, c_column) = (places(f) for f in (*OPERANDS[kind], c_32bit))
    names = torch.arange(b_k.numel()).view(b_k.shape) - (128 if kind == S8 else 0)  # every element of B has its own
    b = torch.zeros(int(b_k.max()) + 1, 8)
    b[b_k, b_column] = names.float()
    for thread, element in itertools.product(range(4), range(a_k.shape[1])):
        lanes = thread + 4 * torch.arange(8)  # of eight rows
        ones = torch.zeros(a_k.shape, dtype=TYPES[kind])
        ones[lanes, element] = 1
        d = torch.zeros(32, 4, dtype=torch.int32)
        primitive("mma", kind, d, as_words(ones), as_words(names.to(TYPES[kind])), None)
        want = torch.zeros(16, 8)
        want[a_row[lanes, element]] = b[a_k[lanes, element]]
        assert torch.equal(d.float() if kind == S8 else d.view(torch.float32), want[c_row, c_column])


def tensor_core_sum(a: list[float], b: list[float], c: float, least: int, fraction: int) -> float:
    """c + a b as arXiv 2511.10909 has it: terms cut off `fraction` bits below the largest, their sum to float32.

    least: the exponent of the operands' subnormals.
    """

    def exponent(x: float, least: int) -> int:
        return max(math.frexp(x)[1] - 1, least) if x else -126

    terms = [(c, exponent(c, -126))]
    terms += [(x * y, exponent(x, least) + exponent(y, least)) for x, y in zip(a, b, strict=True)]
    unit = 2.0 ** (max(e for _, e in terms) - fraction)
    total = sum(int(x / unit) for x, _ in terms) * unit
    last = 2.0 ** max(math.frexp(total)[1] - 24, -149)
    return int(total / last) * last


@pytest.mark.parametrize("spread", [0, 4, 10])
@pytest.mark.parametrize("kind", [BF16, F16])
def test_mma_sums_as_a_tensor_core(primitive: Primitive, tensor_core: tuple[int, int], kind: int, spread: int) -> None:
    def numbers(rows: int, columns: int) -> Tensor:
        x = torch.randn(rows, columns) * torch.exp2(torch.randint(-spread, spread + 1, (rows, columns)))
        return torch.where(torch.rand(rows, columns) < 0.1, 0.0, x)

    together, fraction = tensor_core
    a, b, c = numbers(16, 16).to(TYPES[kind]), numbers(16, 8).to(TYPES[kind]), numbers(16, 8)
    want = c.clone()
    for k in range(0, 16, together):
        for m, n in itertools.product(range(16), range(8)):
            left, right = a[m, k : k + together].tolist(), b[k : k + together, n].tolist()
            want[m, n] = tensor_core_sum(left, right, want[m, n].item(), -126 if kind == BF16 else -14, fraction)
    d = torch.zeros(32, 4, dtype=torch.int32)
    primitive("mma", kind, d, a_16bit(a), b_16bit(b), c_32bit(c))
    assert torch.equal(d, c_32bit(want))


@pytest.mark.parametrize("kind", [BF16, F16])
def test_mma_by_zeros_leaves_c_to_the_bit(primitive: Primitive, kind: int) -> None:
    """What masked keys and rows past the end rely on, so that they may be there or not (law 6)."""
    b = (torch.randn(16, 8) * 2**12).to(TYPES[kind])
    c = torch.randn(16, 8) * torch.exp2(torch.randint(-90, 90, (16, 8)))
    for left, right in ((torch.zeros(16, 16), b), (torch.randn(16, 16), torch.zeros_like(b))):
        d = torch.zeros(32, 4, dtype=torch.int32)
        primitive("mma", kind, d, a_16bit(left.to(TYPES[kind])), b_16bit(right), c_32bit(c))
        assert torch.equal(d, c_32bit(c))


@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize(("kind", "dtype"), [(BF16, torch.bfloat16), (F16, torch.float16)])
def test_mma_of_16_bit_types(primitive: Primitive, kind: int, dtype: torch.dtype, with_c: bool) -> None:
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    d = torch.zeros(32, 4, dtype=torch.int32)
    primitive("mma", kind, d, a_16bit(a), b_16bit(b), c_32bit(c) if with_c else None)
    want = (a.double() @ b.double() + (c.double() if with_c else 0)).float()
    torch.testing.assert_close(
        d.view(torch.float32), c_32bit(want).view(torch.float32), rtol=1e-5, atol=3e-5
    )  # a tensor core truncates


@pytest.mark.parametrize("with_c", [True, False])
def test_mma_of_int8_wraps(primitive: Primitive, with_c: bool) -> None:
    a = torch.randint(-128, 128, (16, 32), dtype=torch.int8)
    b = torch.randint(-128, 128, (32, 8), dtype=torch.int8)
    c = torch.randint(-(2**31), 2**31, (16, 8), dtype=torch.int32)
    d = torch.zeros(32, 4, dtype=torch.int32)
    primitive("mma", S8, d, a_8bit(a), b_8bit(b), c_32bit(c) if with_c else None)
    want = a.to(torch.int32) @ b.to(torch.int32) + (c if with_c else 0)
    assert torch.equal(d, c_32bit(want))


@pytest.mark.parametrize("stride", [8, 24])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(primitive: Primitive, matrices: int, trans: bool, stride: int) -> None:
    rows = torch.randperm(2**15)[: matrices * 64].to(torch.int16).view(matrices, 8, 8)
    r = torch.zeros(32, matrices, dtype=torch.int32)
    primitive("ldmatrix", matrices, trans, r, as_words(rows), stride)
    for j in range(matrices):
        matrix = rows[j].T if trans else rows[j]
        want = as_words(torch.stack([matrix[GROUP, 2 * THREAD], matrix[GROUP, 2 * THREAD + 1]], dim=1))
        assert torch.equal(r[:, j : j + 1], want)


def run(primitive: Primitive, name: str, a: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> Tensor:
    words = [torch.zeros_like(a, dtype=torch.int32) if x is None else x.view(torch.int32) for x in (a, b, c)]
    out = torch.empty_like(words[0])
    primitive("elementwise", name, out, *words)
    return out


def floats(n: int = 500) -> Tensor:
    return torch.randn(n) * torch.exp2(torch.randint(-20, 20, (n,)))


@pytest.mark.parametrize(
    ("name", "function", "values"),
    [
        ("exp2_approx", torch.exp2, torch.cat([torch.linspace(-125, 127, 500), torch.tensor([-float("inf"), 0.0])])),
        ("log2_approx", torch.log2, floats().abs()),
        ("rcp_approx", torch.reciprocal, floats()),
        ("rsqrt_approx", torch.rsqrt, floats().abs()),
    ],
)
def test_approximations(primitive: Primitive, name: str, function: Callable[[Tensor], Tensor], values: Tensor) -> None:
    got = run(primitive, name, values).view(torch.float32)
    torch.testing.assert_close(got, function(values.double()).float(), rtol=3e-7, atol=1e-6 if "log2" in name else 0)


def test_exp2_flushes_to_zero(primitive: Primitive) -> None:
    assert not run(primitive, "exp2_approx", torch.tensor([-127.0, -149.0, -1000.0])).any()


def test_logic_and_permutation(primitive: Primitive) -> None:
    a, b, c = (torch.randint(-(2**31), 2**31, (500,), dtype=torch.int32) for _ in range(3))
    assert torch.equal(run(primitive, "lop3_and_or", a, b, c), a & b | c)
    assert torch.equal(run(primitive, "lop3_xor", a, b, c), a ^ b ^ c)
    both = torch.stack([a, b], dim=1).view(torch.uint8)
    nibbles = torch.stack([c >> (4 * i) & 15 for i in range(4)], dim=1).long()
    picked = both.gather(1, nibbles & 7)
    signs = torch.where(picked >= 128, 255, 0).to(torch.uint8)
    assert torch.equal(run(primitive, "prmt", a, b, c), as_words(torch.where(nibbles >= 8, signs, picked))[:, 0])


def test_high_products(primitive: Primitive) -> None:
    a, b, c = (torch.randint(-(2**31), 2**31, (100,), dtype=torch.int32) for _ in range(3))
    x, y, z = ([v & 0xFFFFFFFF for v in t.tolist()] for t in (a, b, c))
    got = [v & 0xFFFFFFFF for v in run(primitive, "mulhi_u32", a, b).tolist()]
    assert got == [p * q >> 32 for p, q in zip(x, y, strict=True)]
    got = [v & 0xFFFFFFFF for v in run(primitive, "mulhi_u64", a, b, c).tolist()]
    assert got == [(p | q << 32) * (q | r << 32) >> 96 for p, q, r in zip(x, y, z, strict=True)]


@pytest.mark.parametrize(("name", "dtype"), [("fma_bf162", torch.bfloat16), ("fma_h2", torch.float16)])
def test_pairs_are_rounded_once(primitive: Primitive, name: str, dtype: torch.dtype) -> None:
    a, b, c = (torch.randn(1000).to(dtype) for _ in range(3))
    got = run(primitive, name, *(x.view(torch.int32) for x in (a, b, c))).view(dtype)
    exact = a.double() * b.double() + c.double()
    # Half a unit in the last place: none of the neighbours is nearer.
    up, down = torch.nextafter(got, torch.full_like(got, 1e4)), torch.nextafter(got, torch.full_like(got, -1e4))
    error = (got.double() - exact).abs()
    assert (error <= (up.double() - exact).abs()).all()
    assert (error <= (down.double() - exact).abs()).all()


@pytest.mark.parametrize(("bits", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_packing(primitive: Primitive, bits: str, dtype: torch.dtype) -> None:
    a, b = torch.randn(500), torch.randn(500)
    packed = run(primitive, f"pack_{bits}", a, b)
    assert torch.equal(packed, as_words(torch.stack([a, b], dim=1).to(dtype))[:, 0])
    low = run(primitive, f"unpack_{bits}", packed, c=torch.zeros(500, dtype=torch.int32))
    high = run(primitive, f"unpack_{bits}", packed, c=torch.ones(500, dtype=torch.int32))
    assert torch.equal(low.view(torch.float32), a.to(dtype).float())
    assert torch.equal(high.view(torch.float32), b.to(dtype).float())


def test_fused_multiply_add(primitive: Primitive) -> None:
    a, b = torch.randn(500), torch.randn(500)
    residue = run(primitive, "fma_rn", a, b, -(a * b)).view(torch.float32)
    assert torch.equal(residue, (a.double() * b.double() - (a * b).double()).float())


def test_e4m3_to_f16_is_exact(primitive: Primitive) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    pairs = torch.stack([codes, codes.flip(0)], dim=1)
    words = pairs.to(torch.int32)[:, 0] | pairs.to(torch.int32)[:, 1] << 8
    got = run(primitive, "cvt_e4m3x2_f16x2", words).view(torch.float16).view(256, 2)
    assert torch.equal(got.float().nan_to_num(1e9), pairs.view(torch.float8_e4m3fn).float().nan_to_num(1e9))
    assert torch.equal(got.isnan(), (pairs & 127) == 127)


def test_f32_to_e4m3_rounds_and_saturates(primitive: Primitive) -> None:
    x = torch.cat([floats(5000), torch.linspace(-500, 500, 2001), torch.linspace(-0.05, 0.05, 2001)])
    x = torch.cat([x, torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 464.0, 2**-10, 3 * 2**-10, 2**-6])])
    got = run(primitive, "cvt_f32x2_e4m3x2", x, -x)
    want = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int32)
    assert torch.equal(got & 255, want)
    assert torch.equal(got >> 8, want ^ 128)
    assert (run(primitive, "cvt_f32x2_e4m3x2", torch.tensor([float("nan")])) & 127).item() == 127


@pytest.mark.parametrize("operand", [1, 3, 8, 31, 33])
def test_lanes(primitive: Primitive, operand: int) -> None:
    a = torch.randint(-(2**31), 2**31, (32,), dtype=torch.int32)

    def lanes(name: str) -> Tensor:
        out = torch.empty(32, dtype=torch.int32)
        primitive("lanes", name, out, a, operand)
        return out

    by = operand % 32  # five bits count
    earlier = by ^ LANES <= LANES | 7  # lanes reach into groups before their own, not behind it
    assert torch.equal(lanes("shfl"), a[by].expand(32))
    assert torch.equal(lanes("shfl_wide"), a[by].expand(32))
    assert torch.equal(lanes("shfl_xor"), a[LANES ^ by])
    assert torch.equal(lanes("shfl_up"), a[torch.where(by <= LANES, LANES - by, LANES)])
    assert torch.equal(lanes("shfl_down"), a[torch.where(LANES + by < 32, LANES + by, LANES)])
    assert torch.equal(lanes("shfl_groups"), a[LANES // 8 * 8 + by % 8])
    assert torch.equal(lanes("shfl_xor_groups"), a[torch.where(earlier, LANES ^ by, LANES)])
    ballot = sum((int(v) & 1) << i for i, v in enumerate(a))
    assert (lanes("ballot").long() & 0xFFFFFFFF == ballot).all()
    assert torch.equal(lanes("any"), (a == operand).any().to(torch.int32).expand(32))
    assert torch.equal(lanes("all"), (a != operand).all().to(torch.int32).expand(32))
    assert torch.equal(lanes("reduce_add"), a.sum(dtype=torch.int32).expand(32))
    assert torch.equal(lanes("syncthreads_count"), (a & 1).sum(dtype=torch.int32).expand(32))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_fill_with_zeros(primitive: Primitive, size: int) -> None:
    n, valid = 75, 50
    source = torch.randint(0, 256, (valid * size,), dtype=torch.uint8)  # what is not valid is not there either
    out = torch.full((n * size,), 7, dtype=torch.uint8)
    primitive("copy", size, out, source, valid)
    assert torch.equal(out, torch.cat([source, torch.zeros((n - valid) * size, dtype=torch.uint8)]))


def test_atomics(primitive: Primitive) -> None:
    narrow, wide = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    primitive("atomics", narrow, wide)
    assert narrow.tolist() == [3 * 256, 256 % 10]
    assert wide.tolist() == [sum(range(256)) << 30, 255 << 40]


@pytest.mark.parametrize("os_threads", [1, 2])
def test_without_checks_blocks_may_run_side_by_side(os_threads: int) -> None:
    library = load_emulated("simt_tests_fast")
    library.simt_configure("ascending", 1, os_threads)
    try:
        assert not library.simt_checking()
        narrow, wide = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
        library.primitive_atomics(narrow, wide)
        assert narrow.tolist() == [3 * 256, 256 % 10]
        assert wide.tolist() == [sum(range(256)) << 30, 255 << 40]
    finally:
        library.simt_configure("ascending", 1, 1)
