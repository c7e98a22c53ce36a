"""What the engine may use of a machine: memory and cores, within the limits of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo_engine.config import available_memory, resolve_threads

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """64 GiB free; this process in /service, of the slice /users."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {64 * GIB // 1024} kB\n")
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/old\n0::/users/service\n")
    (tmp_path / "sys/fs/cgroup/users/service").mkdir(parents=True)
    return tmp_path


def limit(machine: Path, group: str, *, memory: str = "max", used: int = 0, files: int = 0, cpu: str = "max") -> None:
    folder = machine / "sys/fs/cgroup" / group
    (folder / "memory.max").write_text(f"{memory}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\nactive_file 0\ninactive_file {files}\n")
    (folder / "cpu.max").write_text(f"{cpu} 100000\n")


def test_a_machine_without_limits(machine: Path) -> None:
    assert available_memory(machine) == 64 * GIB
    limit(machine, "users/service")
    assert available_memory(machine) == 64 * GIB
    assert resolve_threads(0, machine) == len(os.sched_getaffinity(0))
    (machine / "proc/self/cgroup").unlink()
    assert available_memory(machine) == 64 * GIB


@pytest.mark.parametrize("group", ["", "users", "users/service"])
def test_the_limits_of_every_group_hold(machine: Path, group: str) -> None:
    limit(machine, "users/service")
    limit(machine, group, memory=str(8 * GIB), used=3 * GIB, cpu="100000")
    assert available_memory(machine) == 5 * GIB
    assert resolve_threads(0, machine) == 1
    assert resolve_threads(7, machine) == 7


def test_files_that_are_only_cached_take_no_memory(machine: Path) -> None:
    limit(machine, "users/service", memory=str(8 * GIB), used=8 * GIB, files=6 * GIB)
    assert available_memory(machine) == 6 * GIB
    limit(machine, "users", memory=str(GIB), used=2 * GIB)
    assert available_memory(machine) == 0


@pytest.mark.parametrize(("quota", "threads"), [("50000", 1), ("199999", 1), ("10000000000", None)])
def test_a_quota_is_of_whole_cores(machine: Path, quota: str, threads: int | None) -> None:
    limit(machine, "users", cpu=quota)
    assert resolve_threads(0, machine) == (threads or len(os.sched_getaffinity(0)))
