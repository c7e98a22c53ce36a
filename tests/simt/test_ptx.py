"""The PTX machine's own tests: texts of a few instructions, what they give and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.simt import load_emulated

REGISTERS = """
.reg .pred %p<9>;
.reg .b16 %h<9>;
.reg .b32 %r<9>;
.reg .f32 %f<9>;
.reg .b64 %d<9>;
"""
LANES = torch.arange(32, dtype=torch.int32)


@pytest.fixture
def machine() -> Any:
    return load_emulated("primitives_ptx")


def text(body: str, parameters: int = 1) -> str:
    """A kernel over that many pointers, in %d1 and on, with %r0 the thread and %d0 four times it."""
    names = [f"p{i}" for i in range(parameters)]
    begin = "".join(f"ld.param.u64 %d{i + 1}, [{name}];\n" for i, name in enumerate(names))
    begin += "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d0, %r0, 4;\n"
    begin += "".join(f"add.s64 %d{i + 1}, %d{i + 1}, %d0;\n" for i in range(parameters))
    heads = ",\n".join(f".param .u64 {name}" for name in names)
    module = ".version 9.0\n.extern .shared .align 16 .b8 room[];\n"
    return f"{module}.entry f(\n{heads}\n)\n{{\n{REGISTERS}{begin}{body}\nret;\n}}\n"


def run(machine: Any, body: str, *tensors: Tensor, threads: int = 32, shared: int = 0, blocks: int = 1) -> None:
    machine.ptx_run(text(body, len(tensors)), blocks, threads, shared, list(tensors))


def test_lanes_that_part_wait_for_those_a_shuffle_names(machine: Any) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    # The odd lanes come to the shuffle by a way that stands behind it.
    body = """
    and.b32 %r1, %r0, 1;
    setp.eq.s32 %p1, %r1, 1;
    mov.u32 %r2, %r0;
    @%p1 bra FAR;
    BACK:
    shfl.sync.bfly.b32 %r3|%p2, %r2, 1, 31, -1;
    st.global.u32 [%d1], %r3;
    bra.uni END;
    FAR:
    add.s32 %r2, %r2, 100;
    bra.uni BACK;
    END:
    """
    run(machine, body, out)
    assert torch.equal(out, (LANES ^ 1) + 100 * ((LANES ^ 1) & 1))


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("shfl.sync.bfly.b32 %r3|%p2, %r0, 1, 31, -1;", "don't come to it: f line"),
        ("bar.sync 0;", "don't come to it: f line"),
        ("bar.warp.sync -1;", "don't come to it: f line"),
    ],
)
def test_lanes_that_never_come_are_reported(machine: Any, instruction: str, message: str) -> None:
    body = (
        f"setp.lt.s32 %p1, %r0, 16;\n@%p1 bra END;\n{instruction}\nHERE:\nbra.uni HERE2;\nEND:\nbar.sync 1;\nHERE2:\n"
    )
    with pytest.raises(RuntimeError, match=message):
        run(machine, body, torch.zeros(32, dtype=torch.int32))


def test_a_warp_that_never_comes_to_a_barrier_is_reported(machine: Any) -> None:
    body = "setp.lt.s32 %p1, %r0, 32;\n@%p1 bra END;\nbar.sync 1;\nEND:\nbar.sync 0;\n"
    with pytest.raises(RuntimeError, match="a barrier that not all threads come to"):
        run(machine, body, torch.zeros(64, dtype=torch.int32), threads=64)


def test_barriers_publish_shared_memory_and_count(machine: Any) -> None:
    out = torch.zeros(128, dtype=torch.int32)
    # Each thread reads what the one opposite wrote; a named barrier of two warps counts its own.
    body = """
    mov.u32 %r1, room;
    shl.b32 %r2, %r0, 2;
    add.s32 %r3, %r1, %r2;
    st.shared.u32 [%r3], %r0;
    bar.sync 0;
    sub.s32 %r4, 508, %r2;
    add.s32 %r4, %r4, %r1;
    ld.shared.u32 %r5, [%r4];
    setp.lt.s32 %p1, %r5, 100;
    bar.red.popc.u32 %r6, 0, %p1;
    mad.lo.s32 %r7, %r6, 1000, %r5;
    setp.lt.s32 %p2, %r0, 64;
    @!%p2 bra END;
    bar.sync 3, 64;
    END:
    st.global.u32 [%d1], %r7;
    """
    run(machine, body, out, threads=128, shared=512)
    assert torch.equal(out, 127 - torch.arange(128, dtype=torch.int32) + 100_000)


@pytest.mark.parametrize("left", [0, 1])
def test_copies_land_when_they_are_waited_for(machine: Any, left: int) -> None:
    source, out = LANES + 5, torch.zeros(32, dtype=torch.int32)
    body = f"""
    mov.u32 %r1, room;
    shl.b32 %r2, %r0, 2;
    add.s32 %r3, %r1, %r2;
    cp.async.ca.shared.global [%r3], [%d2], 4, 4;
    cp.async.commit_group;
    cp.async.wait_group {left};
    ld.shared.u32 %r4, [%r3];
    st.global.u32 [%d1], %r4;
    """
    run(machine, body, out, source, shared=128)
    assert torch.equal(out, source if left == 0 else torch.full((32,), -1, dtype=torch.int32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.shared.u32 %r1, [room+126];", "is no multiple of 4"),
        ("ld.shared.v2.u32 {%r1, %r2}, [room+124];", "is no multiple of 8"),
        ("ld.shared.u32 %r1, [room+128];", "beyond shared memory, at 128"),
        ("add.s64 %d1, %d1, 2;\nld.global.u32 %r1, [%d1];", "is no multiple of 4"),
        ("frobnicate.s32 %r1, %r2;", "not known in line .*frobnicate"),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d1}, {%d2}, {%d3}, {%d4};", "mma"),
        ("add.ftz.f32 %f1, %f2, %f3;", "a rounding that is not known"),
        ("add.s64 %r1, %d1, %d2;", "register %r1 has another width"),
        ("add.s32 %r1, %r2, %unknown;", "unknown special register %unknown"),
        ("bra.uni NOWHERE;", "no such label"),
        (".local .b8 depot[16];", "a directive that is not known"),
    ],
)
def test_what_is_wrong_or_not_known_is_refused(machine: Any, body: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(machine, body, torch.zeros(32, dtype=torch.int32), shared=128)


def test_scopes_within_the_text_do_not_end_it(machine: Any) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    body = """
    {
    .reg .b32 %low, %high;
    mov.b64 {%low, %high}, %d0;
    mov.b32 %r1, %low;
    }
    st.global.u32 [%d1], %r1;
    """
    run(machine, body, out)
    assert torch.equal(out, LANES * 4)


def unary(machine: Any, instructions: str, x: Tensor) -> Tensor:
    """Of 32-bit words; in %r1 and, as a float, %f1; the result in %r2."""
    out = torch.empty_like(x)
    body = f"ld.global.u32 %r1, [%d2];\nmov.b32 %f1, %r1;\n{instructions}\nst.global.u32 [%d1], %r2;"
    run(machine, body, out, x, threads=x.numel())
    return out


TINY = [2.0**-9, 2.0**-10, 3 * 2.0**-10, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 1e-40]
LARGE = [447.9, 464.0, 465.0, 65503.0, 65519.9, 65520.0, 2.0**31, -(2.0**31), 1e30, -1e30]
EDGES = [0.0, -0.0, 0.5, 1.0, 1.5, -2.5, *TINY, *LARGE, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_are_torchs(machine: Any, dtype: torch.dtype) -> None:
    x = torch.cat([torch.tensor(EDGES), torch.randn(500) * torch.logspace(-9, 6, 500)])
    kind = "f16" if dtype == torch.float16 else "bf16"
    got = unary(machine, f"cvt.rn.{kind}.f32 %h1, %f1;\nmov.b32 %r2, {{%h1, %h1}};", x.view(torch.int32))
    wanted = x.to(dtype)
    assert torch.equal(got.view(dtype)[::2].nan_to_num(7e4), wanted.nan_to_num(7e4))
    back = unary(machine, f"mov.b32 {{%h1, %h2}}, %r1;\ncvt.f32.{kind} %f2, %h1;\nmov.b32 %r2, %f2;", got)
    assert torch.equal(back.view(torch.float32).nan_to_num(7e4), wanted.float().nan_to_num(7e4))


def test_e4m3_is_torchs(machine: Any) -> None:
    codes = torch.arange(256, dtype=torch.int32)
    wide = unary(machine, "cvt.u16.u32 %h1, %r1;\ncvt.rn.f16x2.e4m3x2 %r2, %h1;", codes).view(torch.float16)[::2]
    wanted = codes.to(torch.uint8).view(torch.float8_e4m3fn).to(torch.float16)
    assert torch.equal(wide.nan_to_num(500), wanted.nan_to_num(500))
    x = torch.cat([torch.tensor([e for e in EDGES if abs(e) < 448]), torch.randn(500) * torch.logspace(-5, 2, 500)])
    got = unary(machine, "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f1;\ncvt.u32.u16 %r2, %h1;", x.view(torch.int32))
    assert torch.equal(got & 255, x.to(torch.float8_e4m3fn).view(torch.uint8).int())
    far = torch.tensor([465.0, -1e9, float("inf"), float("nan")]).view(torch.int32)
    beyond = unary(machine, "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f1;\ncvt.u32.u16 %r2, %h1;", far)
    assert beyond.tolist() == [0x7E7E, 0xFEFE, 0x7E7E, 0x7F7F]


def test_floats_to_integers_saturate(machine: Any) -> None:
    x = torch.tensor([1.9, -1.9, 2.0**31, -(2.0**31) - 1e3, float("nan"), 1e30, 2.5, 3.5])
    got = unary(machine, "cvt.rzi.s32.f32 %r2, %f1;", x.view(torch.int32))
    assert got.tolist() == [1, -1, 2**31 - 1, -(2**31), 0, 2**31 - 1, 2, 3]
    nearest = unary(machine, "cvt.rni.f32.f32 %f2, %f1;\nmov.b32 %r2, %f2;", x.view(torch.int32)).view(torch.float32)
    assert nearest[[0, 1, 6, 7]].tolist() == [2.0, -2.0, 2.0, 4.0]


def test_integers_at_their_edges(machine: Any) -> None:
    x = torch.tensor([5, -5, 0, 2**31 - 1, -(2**31)], dtype=torch.int32)
    assert unary(machine, "div.s32 %r2, %r1, 2;", x).tolist() == [2, -2, 0, 2**30 - 1, -(2**30)]
    assert unary(machine, "rem.s32 %r2, %r1, 3;", x).tolist() == [2, -2, 0, 1, -2]
    assert unary(machine, "shr.s32 %r2, %r1, 40;", x).tolist() == [0, -1, 0, 0, -1]
    assert unary(machine, "shl.b32 %r2, %r1, 32;", x).tolist() == [0] * 5
    assert unary(machine, "div.s32 %r2, %r1, 0;", x).tolist() == [-1] * 5
    assert unary(machine, "bfind.shiftamt.u32 %r2, %r1;", x).tolist() == [29, 0, -1, 1, 0]
    assert unary(machine, "brev.b32 %r2, %r1;", torch.tensor([1, -2], dtype=torch.int32)).tolist() == [
        -(2**31),
        2**31 - 1,
    ]
