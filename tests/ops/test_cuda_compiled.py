"""What nvcc made of every CUDA kernel: compiled for each architecture, and no spill where it would cost.

The build that `make test` runs first has compiled them and kept the compiler's words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.ptxas import ARCHITECTURES, KERNELS, LIBRARY, LOGS, Kernel, fat_binaries, read_log, summary

# Run once at load, not in a step.
COLD = re.compile(r"pack|quantize_weights")

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="no nvcc here: the CUDA kernels are not compiled, only emulated"
)


def kernels() -> list[Kernel]:
    logs = [LOGS / f"{source.name}.log" for source in sorted(KERNELS.glob("*.cu"))]
    return [kernel for log in logs if log.exists() for kernel in read_log(log.read_text(), log.stem)]


@needs_nvcc
def test_every_kernel_is_compiled_for_every_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    found = kernels()
    with capsys.disabled():
        print("", *summary(found), sep="\n")
    for source in sorted(KERNELS.glob("*.cu")):
        log = LOGS / f"{source.name}.log"
        assert log.exists(), f"{source.name} was not compiled by the last build"
        assert log.stat().st_mtime >= source.stat().st_mtime, f"{source.name} changed after the last build"
        if "__global__" not in source.read_text():
            continue
        by_name: dict[str, set[str]] = {}
        for kernel in found:
            if kernel.file == source.name:
                by_name.setdefault(kernel.name, set()).add(kernel.architecture)
        assert by_name, f"{source.name} has no kernels"
        for name, architectures in by_name.items():
            assert architectures >= set(ARCHITECTURES), f"{name} is compiled for {sorted(architectures)}"


@needs_nvcc
def test_later_devices_find_code_that_waits() -> None:
    """sm_100 and sm_120 compile the PTX for themselves, the only one there is: that of sm_80 has no pdl_wait. One that
    was here at the build has code besides."""
    found = fat_binaries(LIBRARY.read_bytes())
    assert len(found) == len(list(KERNELS.glob("*.cu")))
    for entries in found:
        assert entries >= {("sass", 80), ("sass", 90), ("ptx", 90)}
        assert all(kind == "sass" for kind, number in entries if number > 90)


@needs_nvcc
@pytest.mark.parametrize(
    ("here", "code"),
    [
        ("9.0\n9.0", ""),
        ("8.9\n12.0\n12.0\n10.0", "sm_120;sm_100"),
        ("23.0", ""),  # not known to nvcc yet
        ("No devices were found", ""),
    ],
)
def test_devices_that_are_here_get_code_of_their_own(tmp_path: Path, here: str, code: str) -> None:
    (tmp_path / "said").write_text(here)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "script.cmake").write_text(
        f'include({KERNELS}/devices.cmake)\noctavo_code_of_devices(found nvcc)\nmessage(STATUS "code=${{found}}.")\n'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["cmake", "-P", str(tmp_path / "script.cmake")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"code={code}." in said


@needs_nvcc
def test_no_hot_kernel_spills() -> None:
    bad = [k for k in kernels() if k.spilled and k.architecture in ARCHITECTURES and not COLD.search(k.family)]
    assert not bad, "\n".join(f"{k.file} {k.name} {k.architecture}: {k.spilled} bytes" for k in bad)


LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6octavo4cuda12_GLOBAL__N_111cast_kernelILb0EEEvPtPKfll' for 'sm_80'
ptxas info    : Function properties for _ZN6octavo4cuda12_GLOBAL__N_111cast_kernelILb0EEEvPtPKfll
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 384 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN6octavo4cuda12_GLOBAL__N_111cast_kernelILb0EEEvPtPKfll' for 'sm_90a'
ptxas info    : Function properties for _ZN6octavo4cuda12_GLOBAL__N_111cast_kernelILb0EEEvPtPKfll
    16 bytes stack frame, 8 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_the_log_is_read() -> None:
    first, second = read_log(LOG, "cast.cu")
    assert (first.family, first.architecture, first.registers, first.spilled) == ("cast_kernel", "sm_80", 12, 0)
    assert (second.architecture, second.registers, second.stack, second.spilled) == ("sm_90a", 255, 16, 24)
    assert first.name == "octavo::cuda::cast_kernel<false>"
    (line,) = summary([first, second])
    assert "sm_90a 255 registers, 24 B spilled" in line


def test_a_log_without_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="neither registers nor spills"):
        read_log(LOG.replace("Used", "Took"), "cast.cu")
