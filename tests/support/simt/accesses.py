"""What kernels' accesses cost each memory, counted by the emulator (count.cpp): a property of code, no measurement."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

from tests.support.simt import library_path, load_emulated

__all__ = ["Counted", "Kernel", "Site", "counting", "short_name"]

_PRIMITIVES = ("prim.cuh", "simt.h")


@dataclass(frozen=True)
class Site:
    """The accesses of one source line to one memory, of all warps and launches.

    `requests` counts warp-wide accesses of up to `widest` bytes a lane; what follows are sums over them. `bytes`:
    different ones of a request. Shared memory: `wavefronts`. Device memory: `sectors` of 32 bytes, `lines` of 128.
    `ideal`: the least wavefronts or sectors that so many bytes take.
    """

    line: str  # file:number
    space: str  # shared, device
    access: str  # read, write, copy (the end of a cp.async), atomic
    widest: int
    requests: int
    bytes: int
    wavefronts: int
    ideal: int
    sectors: int
    lines: int

    @property
    def excess(self) -> float:
        return self.cost / self.ideal

    @property
    def cost(self) -> int:
        """Wavefronts or sectors."""
        return self.wavefronts if self.space == "shared" else self.sectors


@dataclass(frozen=True)
class Kernel:
    """One kernel's launches.

    shared, in_flight: bytes of a block, the most it has and the most that its cp.async are bringing. Bytes of device
    memory are different ones over all launches: read, written, and of the sectors that hold them.
    """

    name: str
    launches: int
    blocks: int
    threads: int
    shared: int
    in_flight: int
    read: int
    read_sectors: int
    written: int
    written_sectors: int
    sites: tuple[Site, ...]

    def sum(self, what: str, space: str) -> int:
        return sum(getattr(site, what) for site in self.sites if site.space == space)


@dataclass
class Counted:
    kernels: list[Kernel] = field(default_factory=list)

    def kernel(self, name: str) -> Kernel:
        """The one whose name holds `name`."""
        (found,) = (kernel for kernel in self.kernels if name in kernel.name)
        return found


@contextmanager
def counting(name: str = "octavo_cuda_emulated") -> Iterator[Counted]:
    """Counts the accesses of a library's launches; the result is there at the end. Of a build with checks only."""
    library = load_emulated(name)
    result = Counted()
    library.simt_count(True)
    try:
        yield result
        text = str(library.simt_counted())
    finally:
        library.simt_count(False)
    records = [line.split() for line in text.splitlines()]
    places = _places(name, [record[1] for record in records])
    for record in records:
        function, line = places[record[1]]
        if record[0] == "kernel":
            result.kernels.append(Kernel(function, *map(int, record[2:]), ()))  # type: ignore[arg-type]
        else:
            last = result.kernels[-1]
            site = Site(line, record[2], record[3], *map(int, record[4:]))
            result.kernels[-1] = Kernel(**{**vars(last), "sites": (*last.sites, site)})
    result.kernels = [Kernel(**{**vars(kernel), "sites": _by_line(kernel.sites)}) for kernel in result.kernels]


def _by_line(sites: Sequence[Site]) -> tuple[Site, ...]:
    """One site a line and kind of access: the compiler makes several of one in unrolled loops."""

    def place(site: Site) -> tuple[str, int, str, str]:
        file, _, line = site.line.partition(":")
        return file, int(line or 0), site.space, site.access

    merged = []
    for _, group in groupby(sorted(sites, key=place), key=place):
        same = list(group)
        sums = {name: sum(getattr(site, name) for site in same) for name in list(Site.__annotations__)[4:]}
        first = same[0]
        merged.append(Site(first.line, first.space, first.access, max(site.widest for site in same), **sums))
    return tuple(merged)


def _places(name: str, offsets: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Offset in a library -> function and the innermost line that is no primitive's."""
    unique = sorted(set(offsets))
    # A call's return address belongs to what comes behind it.
    asked = "".join(f"{int(offset) - bool(calls):#x}\n" for offset in unique for calls in (0, 1))
    command = ["addr2line", "-aifC", "-e", str(library_path(name))]
    answer = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    chunks = re.split(r"^0x[0-9a-f]+\n", answer, flags=re.MULTILINE)[1:]
    places = {}
    for offset, at, before in zip(unique, chunks[::2], chunks[1::2], strict=True):
        frames = before.splitlines()[1::2]
        files = [frame.split(" ")[0].rpartition("/")[2] for frame in frames]
        line = next((each for each in files if not each.startswith(_PRIMITIVES)), files[0])
        places[offset] = (short_name(at.splitlines()[0]), line)
    return places


def short_name(function: str) -> str:
    """octavo::cuda::(anonymous namespace)::name<(octavo::CacheType)1, 128>(Args) -> name<1, 128>, of any compiler."""
    text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|octavo::|cuda::|__nv_", "", function)
    text = re.sub(r"\(\w+\)(?=\d)", "", text)  # an enumerator's type
    return re.sub(r"\([^()]*\)( const)?$", "", text).removeprefix("void ")
