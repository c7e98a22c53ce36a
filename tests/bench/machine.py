"""What a result says about where it was taken."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "about", "save"]

RESULTS = Path(__file__).parent / "results"


def about() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, command and date (UTC)."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [
            name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags.split()
        ],
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "command": "python -m " + _module() + "".join(" " + shlex.quote(word) for word in sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _module() -> str:
    main = sys.modules["__main__"].__spec__
    return main.name.removesuffix(".__main__") if main else sys.argv[0]


def save(name: str, result: dict[str, Any]) -> Path:
    """Write tests/bench/results/NAME.json, the machine with it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": about(), **result}, indent=1) + "\n")
    print(f"\nwritten: {os.path.relpath(path)}")
    return path
