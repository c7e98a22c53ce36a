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


def available_memory() -> int:
    """Bytes this process could still use: MemAvailable, or what its cgroup leaves where that is less."""
    available = 1 << 40
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, current = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        if text != "max":
            available = min(available, max(0, int(text) - int(current.read_text())))
    except OSError:
        pass  # no cgroup v2 here: MemAvailable is all there is to know
    return available


def resolve_threads(asked: int) -> int:
    """The asked number of kernel threads; 0: the cores that this process may use."""
    return asked or len(os.sched_getaffinity(0))


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
