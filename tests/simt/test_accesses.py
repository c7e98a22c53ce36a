"""What the emulator counts of accesses whose cost the memories' rules give (counted.cu), in every order of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.simt import load_emulated
from tests.support.simt.accesses import Kernel, Site, counting


def aligned() -> Tensor:
    """4096 zeros that start on a line of 128 bytes, as device memory does."""
    room = torch.zeros(4096 + 32)
    return room[-room.data_ptr() // 4 % 32 :][:4096]


def count(library: Any, name: str) -> Kernel:
    out, values = aligned(), aligned()
    with counting("simt_tests") as counted:
        library.counted_run(name, out, values)
    (kernel,) = counted.kernels
    assert (kernel.launches, kernel.blocks, kernel.threads) == (1, 1, 32)
    return kernel


def only(kernel: Kernel, space: str, access: str) -> Site:
    (site,) = (site for site in kernel.sites if (site.space, site.access) == (space, access))
    return site


# Wavefronts and the least: 32 banks of 4 bytes; 32 lanes of 4 bytes, 16 of 8 or 8 of 16 at a time.
@pytest.mark.parametrize(
    ("name", "access", "wavefronts", "ideal"),
    [
        ("words 1", "write", 1, 1),
        ("words 2", "write", 2, 1),
        ("words 32", "write", 32, 1),
        ("words 33", "write", 1, 1),
        ("one word", "read", 1, 1),
        ("pairs", "write", 2, 2),
        ("pairs apart", "write", 4, 2),
        ("fours", "write", 4, 4),
        ("fours apart", "write", 8, 4),
        ("matrices 128", "read", 32, 4),
        ("matrices 144", "read", 4, 4),
        ("copies 16", "copy", 4, 4),
        ("copies 64", "copy", 16, 4),
        ("copies 80", "copy", 4, 4),
        ("one counter", "atomic", 32, 1),
    ],
)
def test_wavefronts(emulator: Any, name: str, access: str, wavefronts: int, ideal: int) -> None:
    site = only(count(emulator, name), "shared", access)
    assert (site.requests, site.wavefronts, site.ideal) == (1, wavefronts, ideal)
    assert site.line.startswith("counted.cu:")


@pytest.mark.parametrize(
    ("name", "requests", "widest", "sectors", "lines", "ideal"),
    [
        ("floats", 1, 4, 4, 1, 4),
        ("floats late", 1, 4, 5, 2, 4),
        ("floats apart", 1, 4, 32, 8, 4),
        ("words of vectors", 1, 16, 16, 4, 16),
        ("neighbours", 2, 4, 17, 5, 8),
        ("copies 16", 1, 16, 16, 4, 16),
        ("branches", 2, 4, 8, 2, 4),
        ("loop", 4, 4, 16, 4, 10),
        ("turns left out", 32, 4, 128, 32, 128),
    ],
)
def test_sectors(emulator: Any, name: str, requests: int, widest: int, sectors: int, lines: int, ideal: int) -> None:
    kernel = count(emulator, name)
    sites = [site for site in kernel.sites if (site.space, site.access) == ("device", "read")]
    assert sum(site.requests for site in sites) == requests
    assert max(site.widest for site in sites) == widest
    assert [sum(getattr(site, what) for site in sites) for what in ("sectors", "lines", "ideal")] == [
        sectors,
        lines,
        ideal,
    ]
    assert (kernel.written, kernel.written_sectors) == (128, 128)


def test_bytes_of_a_launch_count_once() -> None:
    library = load_emulated("simt_tests")
    apart, together = count(library, "floats apart"), count(library, "one word")
    assert (apart.read, apart.read_sectors) == (128, 1024)
    assert (together.read, together.read_sectors) == (0, 0)


def test_copies_are_in_flight_until_waited_for(emulator: Any) -> None:
    kernel = count(emulator, "copies 16")
    assert (kernel.in_flight, kernel.shared) == (512, 512)


def test_only_what_runs_meanwhile_is_counted() -> None:
    library = load_emulated("simt_tests")
    first = count(library, "fours")
    library.counted_run("fours", aligned(), aligned())
    assert count(library, "fours") == first


def test_a_build_without_checks_refuses() -> None:
    with pytest.raises(RuntimeError, match="without checks"), counting("simt_tests_fast"):
        pass
