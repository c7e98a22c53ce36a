"""Everything that needs a GPU, in one go of at most eight minutes: `make gpu`.

Builds the CUDA kernels, runs every test marked gpu, compute-sanitizer over small ones, then the benchmarks, and writes
tests/bench/results/gpu.json. A stage that fails or runs into its limit is told in it, with what it had measured; the
status is that of the build and the tests. Without a GPU it says so and does nothing. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu.probes import about_device
from tests.bench.machine import save
from tests.gpu.stages import ROOT, Outcome, Stage, run_stage

__all__ = ["environment", "main", "stages"]

MOST_SECONDS = 480.0
TARGETS = ("octavo_cuda", "octavo_cpu", "primitives_cuda")
# Where tests are marked gpu: files alone, since what others import may be missing on a machine with a GPU.
OPS = "tests/ops/test_cuda_*.py"
TESTS = (OPS, "tests/simt", "tests/models/test_cuda*.py", "tests/models/test_fallback.py", "tests/e2e/test_device.py")
# A few small cases of every kernel family: each access of every thread is looked at, a hundred times slower.
SMALL = (
    "copy_pages or padding_rows or lists_follow or zeros_and_no_rows or test_embedding or outliers_in_float or "
    "column_slice or casts or strange_logits or forbidden_and_missing or no_numbers or beyond_the_type"
)


def stages(folder: Path) -> list[Stage]:
    """In order. The limits leave half a minute of the eight for starting processes."""
    python, build = sys.executable, str(ROOT / "build" / "native")
    # Settings of plugins that are not there, and warnings of another torch, are no failures.
    lenient = ["-p", "no:cacheprovider", "-o", "addopts=--strict-markers", "-W", "default"]
    pytest = [python, "-m", "pytest", "-q", *lenient, "-m", "gpu"]
    found = [
        Stage(
            "configure",
            ["cmake", "-S", str(ROOT / "csrc"), "-B", build, "-G", "Ninja", f"-DPython3_EXECUTABLE={python}"],
            20,
            needed=True,
        ),
        Stage("build", ["cmake", "--build", build, "--target", *TARGETS], 130, needed=True),
        Stage("tests", [*pytest, *_found(*TESTS)], 90),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        # Without torch's cache of freed memory, so that what lies beside a tensor is nobody's.
        command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", str(sanitizer), "--tool", tool, "--error-exitcode", "9"]
        found.append(Stage(tool, [*command, *pytest, "-k", SMALL, *_found(OPS)], 25))
    limits = {"attention": 40, "quantized": 35, "lora": 15, "engine": 65, "transformers_peer": 35}
    for name, limit in limits.items():
        figures = str(folder / f"{name}.jsonl")
        found.append(Stage(name, [python, "-m", f"tests.bench.gpu.{name}", "--out", figures], limit))
    return found


def _found(*patterns: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def environment() -> dict[str, str]:
    """This process's, with the checkout's own packages first and the hub out of reach."""
    paths = [str(ROOT / "sdk"), str(ROOT / "engine_proc"), str(ROOT)]
    old = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, old] if old else paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run(todo: Sequence[Stage], folder: Path, given: Mapping[str, str]) -> list[Outcome]:
    """All stages, until one that is needed fails or the time is up."""
    outcomes: list[Outcome] = []
    end = time.monotonic() + MOST_SECONDS
    for stage in todo:
        left = end - time.monotonic()
        if left < 5:
            outcomes.append(Outcome(stage.name, "left out", 0.0, " ".join(stage.command), ("no time was left",)))
            continue
        limited = Stage(stage.name, stage.command, min(stage.limit, left), stage.needed)
        print(f"{stage.name}: at most {limited.limit:.0f} s", flush=True)
        outcomes.append(run_stage(limited, folder / f"{stage.name}.log", given))
        print(
            f"{stage.name}: {outcomes[-1].status}, {outcomes[-1].seconds} s", *outcomes[-1].tail, sep="\n  ", flush=True
        )
        if stage.needed and outcomes[-1].status != "ok":
            break
    return outcomes


def figures(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each benchmark had written when it ended, or was ended."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--only", default="", help="stages to run, by name and comma; all of them by default")
    only = [name for name in parser.parse_args(arguments).only.split(",") if name]
    if not torch.cuda.is_available():
        print(f"octavo: no CUDA device here (torch {torch.__version__}): nothing was built, tested or measured")
        return 0
    with tempfile.TemporaryDirectory(prefix="octavo-gpu-") as name:
        folder = Path(name)
        todo = [stage for stage in stages(folder) if not only or stage.name in only]
        outcomes = run(todo, folder, environment())
        result = {
            "device": about_device(),
            "sanitizer": "there" if shutil.which("compute-sanitizer") else "compute-sanitizer is missing: not run",
            "stages": [outcome.as_dict() for outcome in outcomes],
            **figures(folder),
        }
    save("gpu", result)
    bad = [o.name for o in outcomes if o.status != "ok" and o.name in ("configure", "build", "tests", *_SANITIZERS)]
    return 1 if bad else 0


_SANITIZERS = ("memcheck", "racecheck")


if __name__ == "__main__":
    raise SystemExit(main())
