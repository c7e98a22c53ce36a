"""Everything that needs a GPU, in one go of at most eight minutes: `make gpu`.

Builds the CUDA kernels, runs every test marked gpu, then the benchmarks, compute-sanitizer over small tests, and last
what others need for the same work. After every stage it writes tests/bench/results/gpu.json, so that a run that is
ended leaves what it had: a stage that fails or runs into its limit is told in it, with what it had measured. The status
is that of the build and the tests. Without a GPU it says so and does nothing. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu.probes import about_device
from tests.bench.machine import save
from tests.gpu.stages import ROOT, Outcome, Stage, run_stage

__all__ = ["environment", "main", "stages"]

MOST_SECONDS = 474.0  # and six more for one to end that is at its limit
TARGETS = ("octavo_cuda", "octavo_cpu", "primitives_cuda")
# Where tests are marked gpu: files alone, since what others import may be missing on a machine with a GPU.
OPS = "tests/ops/test_cuda_*.py"
TESTS = (
    OPS,
    "tests/simt",
    "tests/models/test_cuda*.py",
    "tests/models/test_fallback.py",
    "tests/execution/test_stand_in.py",
)
SERVED = ("tests/e2e/test_device.py",)  # engines, which measure the device's memory: with nobody beside them
# A few small cases of every kernel family: each access of every thread is looked at, a hundred times slower.
SMALL = (
    "copy_pages or padding_rows or lists_follow or zeros_and_no_rows or test_embedding or outliers_in_float or "
    "column_slice or casts or strange_logits or forbidden_and_missing or no_numbers or beyond_the_type"
)


def stages(folder: Path) -> list[Stage]:
    """In order: what says most comes first. The limits leave some seconds of the eight minutes for starting them."""
    python, build = sys.executable, str(ROOT / "build" / "native")
    # Settings of plugins that are not there, and warnings of another torch, are no failures.
    lenient = ["-p", "no:cacheprovider", "-o", "addopts=--strict-markers", "-W", "default", "-rfE"]
    pytest = [python, "-m", "pytest", "-q", *lenient, "-m", "gpu"]
    watched = ["-p", "tests.gpu.lost", "--lost-device", str(folder / "lost.txt"), *_patience(), *_workers()]
    found = [
        Stage(
            "configure",
            ["cmake", "-S", str(ROOT / "csrc"), "-B", build, "-G", "Ninja", f"-DPython3_EXECUTABLE={python}"],
            20,
            needed=True,
        ),
        Stage("build", ["cmake", "--build", build, "--target", *TARGETS], 130, needed=True),
        Stage("tests", [*pytest, *watched, *_found(*TESTS)], 75),
        Stage("served", [*pytest, *_patience(), *_found(*SERVED)], 40),
    ]
    limits = {"engine": 75, "attention": 35, "quantized": 30, "lora": 10, "transformers_peer": 25}
    for name, limit in limits.items():
        figures = str(folder / f"{name}.jsonl")
        found.append(Stage(name, [python, "-m", f"tests.bench.gpu.{name}", "--out", figures], limit))
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        # Without torch's cache of freed memory, so that what lies beside a tensor is nobody's.
        command = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", str(sanitizer), "--tool", tool, "--error-exitcode", "9"]
        found.insert(-1, Stage(tool, [*command, *pytest, "-k", SMALL, *_found(OPS)], 15))
    return found


def _workers() -> list[str]:
    """Tests side by side: most of their time is the reference's, on the host."""
    count = min(8, len(os.sched_getaffinity(0)) // 2)
    return ["-n", str(count), "--dist", "worksteal"] if count > 1 and find_spec("xdist") else []


def _patience() -> list[str]:
    """A kernel that never ends is ended with its process."""
    return ["--timeout", "30", "--timeout-method", "thread"] if find_spec("pytest_timeout") else []


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


def run(
    todo: Sequence[Stage],
    folder: Path,
    given: Mapping[str, str],
    keep: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """All stages, until one that is needed fails or the time is up. What one leaves of its time, the next may take.

    keep: called after each.
    """
    outcomes: list[Outcome] = []
    end = time.monotonic() + MOST_SECONDS
    for i, stage in enumerate(todo):
        left = end - time.monotonic()
        if left < 5:
            outcomes.append(Outcome(stage.name, "left out", 0.0, " ".join(stage.command), ("no time was left",)))
            continue
        spare = left - sum(later.limit for later in todo[i + 1 :])
        limited = Stage(stage.name, stage.command, min(max(stage.limit, spare), left), stage.needed)
        print(f"{stage.name}: at most {limited.limit:.0f} s", flush=True)
        outcomes.append(run_stage(limited, folder / f"{stage.name}.log", given))
        print(
            f"{stage.name}: {outcomes[-1].status}, {outcomes[-1].seconds} s", *outcomes[-1].tail, sep="\n  ", flush=True
        )
        keep(outcomes)
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
    parser.add_argument("--skip", default="", help="stages to leave out; configure,build where the kernels came built")
    parser.add_argument("--out", type=Path, help="a folder for gpu.json and all that was printed, gpu.log, as well")
    asked = parser.parse_args(arguments)
    only, skip = asked.only.split(","), asked.skip.split(",")
    if not torch.cuda.is_available():
        print(f"octavo: no CUDA device here (torch {torch.__version__}): nothing was built, tested or measured")
        return 0
    with tempfile.TemporaryDirectory(prefix="octavo-gpu-") as name:
        folder = Path(name)
        todo = [stage for stage in stages(folder) if (only == [""] or stage.name in only) and stage.name not in skip]
        here = {
            "device": about_device(),
            "sanitizer": "there" if shutil.which("compute-sanitizer") else "compute-sanitizer is missing: not run",
        }

        def keep(outcomes: Sequence[Outcome]) -> None:
            lost = folder / "lost.txt"
            path = save(
                "gpu",
                {
                    **here,
                    "stages": [outcome.as_dict() for outcome in outcomes],
                    "lost": lost.read_text().splitlines() if lost.exists() else [],
                    **figures(folder),
                },
            )
            if asked.out is not None:
                asked.out.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, asked.out)
                with (asked.out / "gpu.log").open("w") as file:
                    for path in sorted(folder.glob("*.log"), key=os.path.getmtime):
                        file.write(f"==== {path.stem}\n{path.read_text(errors='replace')}\n")

        outcomes = run(todo, folder, environment(), keep)
    bad = [o.name for o in outcomes if o.status != "ok" and o.name in _DECISIVE]
    return 1 if bad else 0


_DECISIVE = ("configure", "build", "tests", "served", "memcheck", "racecheck")


if __name__ == "__main__":
    raise SystemExit(main())
