"""What the files of csrc/cuda may spell: PTX in one header, launches in another, and nothing of the other side."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
FILES = sorted(path for path in (CSRC / "cuda").iterdir() if path.suffix in {".cu", ".cuh", ".h", ".cpp"})
# A pattern, why it is refused, and the one file that may.
RULES = [
    (r"\basm\b", "PTX belongs to prim.cuh", "prim.cuh"),
    (r"__shared__", "OCTAVO_SHARED or OCTAVO_DYNAMIC_SHARED (prim.cuh)", "prim.cuh"),
    (r"<<<|cudaLaunchKernel", "launch (launch.h)", "launch.h"),
    (r"#include .*tvm/ffi", "only bindings know TVM FFI", "binding_cuda.h"),
    (r"OCTAVO_SIMT", "a kernel is the same for both compilers", "prim.cuh launch.h binding_cuda.h"),
]


def code_of(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text())


def test_there_are_kernels() -> None:
    assert any(path.suffix == ".cu" for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_spelled_only_where_it_belongs(path: Path) -> None:
    code = code_of(path)
    for pattern, reason, allowed in RULES:
        if path.name in allowed.split() or ("tvm" in pattern and path.name.endswith("_binding.cpp")):
            continue
        assert not re.search(pattern, code), f"{path.name}: {reason}"


@pytest.mark.parametrize(("side", "other"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_the_sides_do_not_include_each_other(side: str, other: str) -> None:
    for path in (CSRC / side).iterdir():
        if path.is_file():
            assert not re.search(rf'#include "[^"]*{other}/', path.read_text()), path.name
