"""What the device gives, measured beside the kernels: the floors that their figures are shares of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tests.bench.gpu.timing import Stopwatch

__all__ = ["Machine", "about_device", "free_memory", "probe"]

_COPY_BYTES = 1 << 30
_GEMM = 8192


@dataclass(frozen=True)
class Machine:
    """copy: bytes/s of a device-to-device copy, read and written both counted. gemm: bfloat16 FLOP/s of cuBLAS on
    random 8192 x 8192 matrices."""

    copy: float
    gemm: float

    def floor(self, nbytes: float, flops: float) -> float:
        """The least seconds for so many bytes moved and operations done."""
        return max(nbytes / self.copy, flops / self.gemm)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def probe(clock: Stopwatch, device: torch.device, *, scale: float = 1.0) -> Machine:
    """scale: of the probes' sizes, under 1 for a device that is none."""
    size, n = int(_COPY_BYTES * scale), max(16, int(_GEMM * scale))
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    copies: list[Callable[[], object]] = [partial(target.copy_, source), partial(source.copy_, target)]
    copy = 2 * size / clock(copies).seconds
    del source, target
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    gemm = 2 * n**3 / clock([partial(torch.mm, a, b)] * 4).seconds
    return Machine(copy, gemm)


def free_memory(device: torch.device) -> int:
    """Bytes that nobody holds; of a device that is none, more than anything takes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 60


def about_device() -> dict[str, Any]:
    """The device, its memory in GiB, and the software that drives it."""
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
