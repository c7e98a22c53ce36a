"""What the compiler made of the hot CUDA kernels: occupancy, bytes in flight, and the inner loop's instructions.

    python -m tests.bench.sass [--cases decode,int4] [--library FILE ...] [--save]

A property of the compiled code, no measurement. Registers and instructions are read from the library by cuobjdump (of
the CUDA toolkit, or `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`), threads, shared memory and bytes in
flight of a block come from the emulator (tests.bench.accesses). Blocks of an SM that fit registers, threads and shared
memory: sm_89 runs the code of sm_80. In flight: what the rings of cp.async bring to an SM of sm_90, and how often that
is what Little's law asks for (LITTLE).
The loop is the innermost one with most tensor core instructions, and of it the way that a turn mostly takes: all of its
products and copies, and of what can be jumped over nothing else.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.accesses import Case, cases
from tests.bench.machine import save
from tests.bench.report import table
from tests.support.ptxas import ROOT
from tests.support.simt.accesses import Kernel, counting, short_name

LIBRARY = ROOT / "engine_proc" / "octavo_engine" / "ops" / "_native" / "liboctavo_cuda.so"

LITTLE = 3.35e12 * 700e-9 / 132  # bytes an SM of an H100
PRODUCTS = ("HMMA", "IMMA")
COPIES = ("LDGSTS",)


@dataclass(frozen=True)
class Chip:
    code: str
    shared: int  # bytes of an SM, of which a block takes 1 KB besides
    a_block: int  # bytes that it may have
    threads: int

    def blocks(self, registers: int, kernel: Kernel) -> int:
        """Blocks of the kernel that an SM holds."""
        if kernel.shared > self.a_block:
            return 0
        a_warp = -(-registers * 32 // 256) * 256
        warps = -(-kernel.threads // 32)
        return min(65536 // (a_warp * warps), self.shared // (kernel.shared + 1024), self.threads // (32 * warps), 32)


CHIPS = {
    "sm_80": Chip("sm_80", 164 << 10, 163 << 10, 2048),
    "sm_89": Chip("sm_80", 100 << 10, 99 << 10, 1536),
    "sm_90a": Chip("sm_90a", 228 << 10, 227 << 10, 2048),
}


@dataclass(frozen=True)
class Loop:
    """Instructions of one turn of a warp: all of the loop's, and on the way that it mostly takes, by their names."""

    length: int
    taken: dict[str, int]

    def count(self, names: tuple[str, ...]) -> int:
        return sum(self.taken.get(name, 0) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="only cases whose name has one of these in it")
    parser.add_argument(
        "--library", type=Path, nargs="+", default=[LIBRARY], help="or cubins; a later one's kernels count"
    )
    parser.add_argument("--save", action="store_true", help="write results/cuda_code.json")
    arguments = parser.parse_args()
    wanted = arguments.cases.split(",")
    launched = {
        kernel.name: (case, kernel)
        for case in cases()
        if any(part in case.name for part in wanted)
        for kernel in launches(case)
    }
    registers: dict[str, dict[str, int]] = {"sm_80": {}, "sm_90a": {}}
    loops: dict[str, Loop] = {}
    for library in arguments.library:
        for code, found in registers.items():
            found.update(read_registers(library, code))
        for name, text in functions(library, "sm_90a"):
            if name in launched and (loop := inner(text)):
                loops[name] = loop
    rows, result = [], []
    for name, (case, kernel) in launched.items():
        used = {code: of[name] for code, of in registers.items()}
        blocks = {chip: CHIPS[chip].blocks(used[CHIPS[chip].code], kernel) for chip in CHIPS}
        flying = blocks["sm_90a"] * kernel.in_flight
        most = loops.get(name)
        rows.append(
            [
                f"{case.name}: {name}",
                f"{used['sm_80']}/{used['sm_90a']}",
                f"{kernel.shared / 1024:.1f}",
                "/".join(str(blocks[chip]) for chip in CHIPS),
                str(blocks["sm_90a"] * -(-kernel.threads // 32)),
                f"{flying / 1024:.0f} KB, {flying / LITTLE:.1f}x" if flying else "-",
                *([f"{most.length}", f"{sum(most.taken.values())}"] if most else ["-", "-"]),
                *([str(most.count(PRODUCTS)), str(most.count(COPIES))] if most else ["-", "-"]),
                f"{sum(most.taken.values()) / most.count(PRODUCTS):.1f}" if most else "-",
            ]
        )
        result.append(
            {"case": case.name, "kernel": name, "registers": used, "threads": kernel.threads, "shared": kernel.shared}
            | {"blocks": blocks, "in_flight": flying, "loop": asdict(most) if most else None}
        )
    header = ["case: kernel", "registers 80/90a", "KB shared", "blocks 80/89/90a", "warps", "in flight"]
    header += ["loop", "taken", "mma", "copies", "taken/mma"]
    print(table("Compiled kernels; of the inner loop a warp's instructions on sm_90a", header, rows))
    if arguments.save:
        save("cuda_code", {"kernels": result})


def launches(case: Case) -> list[Kernel]:
    with counting() as counted:
        case.call()
    return [kernel for kernel in counted.kernels if kernel.name.startswith(case.kernel)]


def cuobjdump(library: Path, *options: str) -> Iterator[str]:
    tool = shutil.which("cuobjdump")
    if tool is None:
        raise SystemExit(
            "cuobjdump is not on PATH: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or the toolkit's"
        )
    with subprocess.Popen([tool, *options, str(library)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout


def demangled(names: list[str]) -> list[str]:
    answer = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [short_name(line) for line in answer.stdout.splitlines()]


def read_registers(library: Path, code: str) -> dict[str, int]:
    text = "".join(cuobjdump(library, "-res-usage", "-arch", code))
    found = re.findall(r"Function (\S+):\s+REG:(\d+)", text)
    return dict(zip(demangled([name for name, _ in found]), (int(count) for _, count in found), strict=True))


Code = list[tuple[int, str]]  # address, instruction


def functions(library: Path, code: str) -> list[tuple[str, Code]]:
    names: list[str] = []
    bodies: list[Code] = []
    for line in cuobjdump(library, "-sass", "-arch", code):
        if "Function :" in line:
            names.append(line.partition(":")[2].strip())
            bodies.append([])
        elif names and (match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line)):
            bodies[-1].append((int(match[1], 16), match[2]))
    return list(zip(demangled(names), bodies, strict=True))


def operation(instruction: str) -> str:
    """Its name without predicate and modifiers."""
    return re.sub(r"^@!?U?P\w\s+", "", instruction).split()[0].partition(".")[0]


def target(instruction: str) -> int | None:
    """Where a branch goes."""
    match = re.search(r"BRA(?!\.DIV).*?0x([0-9a-f]+)", instruction)
    return int(match[1], 16) if match else None


def inner(code: Code) -> Loop | None:
    """The innermost loop with most tensor core instructions; None where no loop has any."""
    spans = [(goal, at) for at, text in code if (goal := target(text)) is not None and goal < at]
    ways = {span: way for span in spans if (way := taken(code, span)) and products(way)}
    innermost = [span for span in ways if not any(o != span and span[0] <= o[0] and o[1] <= span[1] for o in ways)]
    if not innermost:
        return None
    span = max(innermost, key=lambda each: products(ways[each]))
    return Loop(sum(span[0] <= at <= span[1] for at, _ in code), ways[span])


def products(way: dict[str, int]) -> int:
    return sum(way.get(name, 0) for name in PRODUCTS)


def taken(code: Code, span: tuple[int, int]) -> dict[str, int] | None:
    """Instructions by name on the way from a loop's first to its last that has most products and copies, then least.

    None where no way leads there: a branch back that is no loop's, from code that was moved out of line.
    """
    body = [(at, text) for at, text in code if span[0] <= at <= span[1]]
    place = {at: i for i, (at, _) in enumerate(body)}
    best: list[tuple[int, int, int] | None] = [None] * len(body)  # wanted ones, minus all, where from
    for i, (_, text) in enumerate(body):
        before = (0, 0, -1) if i == 0 else best[i]
        if before is None:
            continue
        work = operation(text) in PRODUCTS + COPIES
        here = (before[0] + work, before[1] - 1, before[2])
        best[i] = here
        goal, next_ = target(text), []
        if goal is not None and goal in place and place[goal] > i:
            next_.append(place[goal])
        if i + 1 < len(body) and (goal is None or text.startswith("@") or re.search(r"BRA (U?P|`)", text)):
            next_.append(i + 1)
        for j in next_:
            offered = (here[0], here[1], i)
            old = best[j]
            if old is None or offered[:2] > old[:2]:
                best[j] = offered
    names: Counter[str] = Counter()
    at = len(body) - 1
    while at >= 0:
        names[operation(body[at][1])] += 1
        step = best[at]
        if step is None:
            return None
        at = step[2]
    return dict(names.most_common())


if __name__ == "__main__":
    main()
