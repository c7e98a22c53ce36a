"""Every mistake that the emulator claims to find, planted in a kernel, and the kernel without it (planted.cu)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.simt import load_emulated

# What a mistake may be reported as. More than one where the order of threads decides which of its effects comes first.
KINDS: dict[str, set[str]] = {
    "barrier_in_branch": {"divergent_barrier"},
    "barrier_after_exit": {"divergent_barrier"},
    "two_barriers": {"divergent_barrier"},
    "named_barrier_count": {"deadlock"},
    "named_barrier_order": {"race"},
    "missing_barrier": {"race"},
    "missing_barrier_reuse": {"race"},
    "missing_barrier_bytes": {"race"},
    "missing_barrier_device": {"race"},
    "missing_warp_sync": {"race"},
    "warp_sync_across_warps": {"race"},
    "shared_atomics": {"race"},
    "shared_bounds": {"out_of_bounds"},
    "dynamic_shared_bounds": {"out_of_bounds"},
    "device_bounds": {"out_of_bounds"},
    "device_bounds_below": {"out_of_bounds"},
    "host_pointer": {"out_of_bounds"},
    "misaligned_device": {"misaligned"},
    "misaligned_shared": {"misaligned"},
    "misaligned_ldmatrix": {"misaligned"},
    "ldmatrix_of_device_memory": {"out_of_bounds"},
    "copy_of_shared_memory": {"out_of_bounds"},
    "misaligned_copy": {"misaligned"},
    "misaligned_source_of_zeros": {"misaligned"},
    "uninitialised_shared": {"uninitialised"},
    "uninitialised_ldmatrix": {"uninitialised"},
    "copy_not_waited": {"async_pending"},
    "copy_waited_too_weakly": {"async_pending"},
    "copy_not_committed": {"async_pending"},
    "copy_of_another_thread": {"race", "async_pending"},
    "copy_into_stage_in_use": {"race", "async_pending"},
    "copy_pending_at_exit": {"async_pending"},
    "copy_past_shared": {"out_of_bounds"},
    "copy_past_source": {"out_of_bounds"},
    "shuffle_in_branch": {"divergent_barrier", "warp_mismatch"},
    "shuffles_in_both_branches": {"warp_mismatch"},
    "shuffle_after_exit": {"warp_mismatch"},
    "shuffle_outside_mask": {"warp_mismatch"},
    "mma_in_branch": {"warp_mismatch"},
    "blocks_write_one_address": {"race"},
    "block_reads_another": {"race"},
    "counter_without_atomic": {"race"},
    "counter_without_fence": {"missing_fence"},
    "counter_with_one_fence": {"missing_fence"},
    "counter_without_fence_after": {"missing_fence"},
    "write_before_wait": {"before_wait"},
    "launch_before_wait": {"before_wait"},
    "read_before_wait": {"before_wait"},
    "exit_before_wait": {"before_wait"},
    "too_much_shared": {"unsupported"},
    "grid_too_high": {"unsupported"},
}
# Found by the runtime, not by looking at accesses: in a build without checks too.
WITHOUT_CHECKS = {"divergent_barrier", "deadlock", "warp_mismatch", "unsupported"}


def run(library: Any, name: str, good: bool) -> torch.Tensor:
    out, counters = torch.full((64,), -1.0), torch.zeros(8, dtype=torch.int32).view(torch.uint32)
    library.planted_run(name, good, out, torch.arange(64, dtype=torch.float32), counters, torch.zeros(64))
    return out


def test_every_case_is_listed() -> None:
    assert set(load_emulated("simt_tests").planted_names()) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_corrected_kernel_passes(emulator: Any, name: str) -> None:
    run(emulator, name, True)


@pytest.mark.parametrize("name", KINDS)
def test_mistake_is_found(emulator: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match=r"block \(|unsupported"):
        run(emulator, name, False)
    assert emulator.simt_last_error() in KINDS[name]


@pytest.mark.parametrize("name", [name for name, kinds in KINDS.items() if kinds <= WITHOUT_CHECKS])
def test_mistake_is_found_without_checks(name: str) -> None:
    library = load_emulated("simt_tests_fast")
    with pytest.raises(RuntimeError):
        run(library, name, False)
    assert library.simt_last_error() in KINDS[name]


def test_error_names_block_thread_and_line() -> None:
    library = load_emulated("simt_tests")
    with pytest.raises(RuntimeError, match=r"block \(0, 0, 0\) thread \(63, 0, 0\).* at planted\.cu:\d+"):
        run(library, "device_bounds", False)


def test_race_names_both_lines() -> None:
    library = load_emulated("simt_tests")
    with pytest.raises(RuntimeError, match=r"no barrier between .* at planted\.cu:\d+ and this \w+ at planted\.cu:\d+"):
        run(library, "missing_barrier", False)


def test_failure_leaves_nothing_behind(emulator: Any) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError):
            run(emulator, "barrier_in_branch", False)
        assert run(emulator, "counter_without_fence", True)[63] == 32


def test_devices_differ_in_shared_memory() -> None:
    library = load_emulated("simt_tests")
    library.simt_device("sm_89", 90)
    try:
        with pytest.raises(RuntimeError, match=r"cudaErrorInvalidValue: \d+ bytes of shared.* sm_89 has up to 101376"):
            run(library, "too_much_shared", good=True)
    finally:
        library.simt_device("sm_90", 90)
    run(library, "too_much_shared", good=True)
