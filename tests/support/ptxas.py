"""What the compiler says of every CUDA kernel: registers and spills, by architecture. `python -m tests.support.ptxas`.

The build keeps ptxas' words in build/native/ptxas, one file a source file (csrc/cuda/keep_compiled.sh).
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARCHITECTURES", "KERNELS", "LIBRARY", "LOGS", "Kernel", "fat_binaries", "read_log", "summary"]

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "native" / "ptxas"
KERNELS = ROOT / "csrc" / "cuda"
LIBRARY = ROOT / "engine_proc" / "octavo_engine" / "ops" / "_native" / "liboctavo_cuda.so"
ARCHITECTURES = ("sm_80", "sm_90a")

_FAT = struct.pack("<IH", 0xBA55ED50, 1)
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_ANONYMOUS = re.compile(r"_GLOBAL__N__\w+::|\(anonymous namespace\)::|<unnamed>::")


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel for one architecture. stack, spilled: bytes a thread."""

    file: str
    name: str  # with its template arguments, without its parameters
    architecture: str
    registers: int
    stack: int
    spilled: int

    @property
    def family(self) -> str:
        """The name without template arguments and namespaces."""
        return self.name.partition("<")[0].rpartition("::")[2].split()[-1]


def read_log(text: str, file: str = "") -> list[Kernel]:
    """The kernels of a log, in its order. ValueError where an entry lacks its figures."""
    found: list[tuple[str, str, int, int, int]] = []
    for part in re.split(r"(?=ptxas info\s*: Compiling entry function)", text)[1:]:
        entry, spills, registers = _ENTRY.search(part), _SPILLS.search(part), _REGISTERS.search(part)
        if entry is None or spills is None or registers is None:
            raise ValueError(f"{file}: ptxas says neither registers nor spills of {part.splitlines()[0]}")
        stack, stored, loaded = map(int, spills.groups())
        found.append((entry[1], entry[2], int(registers[1]), stack, max(stored, loaded)))
    names = _demangled([mangled for mangled, *_ in found])
    return [Kernel(file, names[mangled], *rest) for mangled, *rest in found]


def _demangled(mangled: list[str]) -> dict[str, str]:
    unique = sorted(set(mangled))
    text = subprocess.run(["c++filt"], input="\n".join(unique), capture_output=True, text=True, check=True).stdout
    return {
        raw: _without_parameters(_ANONYMOUS.sub("", name)) for raw, name in zip(unique, text.split("\n"), strict=False)
    }


def _without_parameters(name: str) -> str:
    """The part before the parameter list, the parenthesis that is outside of template arguments."""
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i].removeprefix("void ")
    return name


def fat_binaries(library: bytes) -> list[set[tuple[str, int]]]:
    """What each kernel file has in a library, such as {("sass", 80), ("ptx", 90)}: sass runs on its own architecture
    and on minor versions above it, ptx is compiled by the driver for whatever comes later.

    A fat binary is magic, version, size of the header (2 bytes), of what follows (8); of its entries each is kind (2),
    version (2), size of its header (4) and of its content (8), and at byte 28 the architecture (4).
    """
    found, at = [], library.find(_FAT)
    while at >= 0:
        header, size = struct.unpack_from("<HQ", library, at + 6)
        entries, place, end = set(), at + header, at + header + size
        while place < end:
            kind, head, length = struct.unpack_from("<HxxIQ", library, place)
            entries.add(({1: "ptx", 2: "sass"}[kind], struct.unpack_from("<I", library, place + 28)[0]))
            place += head + length
        found.append(entries)
        at = library.find(_FAT, end)
    return found


def summary(kernels: Iterable[Kernel]) -> list[str]:
    """A line for each kernel's name: instances, and registers and spills by architecture, the most of all instances."""
    families: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        families.setdefault((kernel.file, kernel.family), []).append(kernel)
    lines = []
    for (file, family), members in sorted(families.items()):
        cells = []
        for architecture in ARCHITECTURES:
            here = [k for k in members if k.architecture == architecture]
            spilled = max((k.spilled for k in here), default=0)
            registers = max((k.registers for k in here), default=0)
            cells.append(f"{architecture} {registers:3} registers" + (f", {spilled} B spilled" if spilled else ""))
        count = len({k.name for k in members})
        lines.append(f"{file + ' ' + family:56} {count:3} x  {';  '.join(cells)}")
    return lines


if __name__ == "__main__":
    for path in sorted(LOGS.glob("*.log")):
        for kernel in sorted(read_log(path.read_text(), path.stem), key=lambda k: (k.name, k.architecture)):
            spills = f" {kernel.spilled:5} B spilled" if kernel.spilled else ""
            print(f"{kernel.registers:4} {kernel.architecture:7} {kernel.file:28} {kernel.name}{spills}")
