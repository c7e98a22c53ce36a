"""What the engine makes of its options and of the machine: every "auto" and None becomes a value.

The environment and /proc are read here and nowhere else in the engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.options import EngineOptions, replace

__all__ = [
    "VERSION",
    "available_memory",
    "checkpoint_dtype",
    "key_variables",
    "quantized_folder",
    "resolve_dtype",
    "resolve_threads",
    "with_limits",
]

VERSION = "0.1.0"

# One step's tokens on a CPU: large enough that weights read once serve many rows, small enough that a running
# stream waits at most a few hundred milliseconds for a neighbour's prompt.
DEFAULT_BATCHED_TOKENS = 512
# On a GPU: enough rows to keep the tensor cores busy, some tens of milliseconds of an 8B model.
DEFAULT_BATCHED_TOKENS_GPU = 8192


_MACHINE = Path("/")


def available_memory(root: Path = _MACHINE) -> int:
    """Bytes this process could still use: MemAvailable, or what its control groups leave where that is less.

    root: where proc and sys are found.
    """
    available = 1 << 40
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    left = map(_memory_left, _groups(root))
    return min([available, *(limit for limit in left if limit is not None)])


def resolve_threads(asked: int, root: Path = _MACHINE) -> int:
    """The asked number of kernel threads; 0: the cores that this process may use, in whole cores of its quota too. With
    more threads than that the kernel would stop all of them for a part of every tenth of a second."""
    cores = map(_cores, _groups(root))
    return asked or min([len(os.sched_getaffinity(0)), *(limit for limit in cores if limit is not None)])


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control group (version 2) and of those around it, whose limits hold too.

    A container finds its own at the top, a service of systemd below that.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = [Path(line.removeprefix("0::/")) for line in lines if line.startswith("0::/") and ".." not in line]
    return [root / "sys/fs/cgroup" / group for path in own for group in (path, *path.parents)]


def _memory_left(group: Path) -> int | None:
    """Bytes. Cached files count as free, as in MemAvailable: a model that was just read would fill a container."""
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the outermost group has none of these
        return None
    cached = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
    return None if limit == "max" else max(0, int(limit) - used + cached)


def _cores(group: Path) -> int | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def checkpoint_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a checkpoint's config.json names: `dtype` (transformers 5) or `torch_dtype`."""
    name = config.get("dtype") or config.get("torch_dtype")
    return str(name).removeprefix("torch.") if name is not None else None


def resolve_dtype(asked: str, config: Mapping[str, Any], isa: str) -> str:
    """ "auto": float32 where the checkpoint says float32 or the CPU has only the portable kernels, else bfloat16.

    bfloat16 halves the bytes a token costs; without vector instructions converting it costs more than it saves.
    """
    if asked != "auto":
        return asked
    if checkpoint_dtype(config) == "float32" or isa == "portable":
        return "float32"
    return "bfloat16"


def quantized_folder(asked: str) -> Path | None:
    """EngineOptions.quantized_cache; "auto": octavo/quantized in the user's cache folder (XDG base directories), None
    where there is no home."""
    if asked != "auto":
        return Path(asked).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification has relative ones ignored
        return Path(base) / "octavo" / "quantized"
    try:
        return Path.home() / ".cache" / "octavo" / "quantized"
    except RuntimeError:
        return None


def key_variables() -> tuple[str, str]:
    """The engine's secret key and its clients' public keys (blanks between) for tcp, where no file can hold them."""
    return os.environ.get("OCTAVO_SECRET_KEY", ""), os.environ.get("OCTAVO_CLIENT_KEYS", "")


def with_limits(
    options: EngineOptions,
    *,
    max_position: int,
    cache_tokens: int,
    **resolved: Any,
) -> EngineOptions:
    """Options with every limit filled in.

    max_model_len: the model's own maximum, or what the KV cache holds where that is less.
    """
    length = options.max_model_len or min(max_position, cache_tokens)
    limited: EngineOptions = replace(options, max_model_len=length, **resolved)
    return limited
