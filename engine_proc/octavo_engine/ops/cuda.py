"""The native CUDA ops: csrc/cuda behind TVM FFI, one Python method an op, one mixin class a kernel family.

Each method allocates its outputs with `self._empty` and calls one native function that checks shapes and types; kernels
run on torch's current stream, and nothing here waits for the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from octavo_engine.ops import OpsUnavailable, cuda_cache
from octavo_engine.ops.cuda_attention import CudaAttention
from octavo_engine.ops.cuda_dense import CudaDense
from octavo_engine.ops.cuda_families import CudaFamilies
from octavo_engine.ops.cuda_graphs import Captured, CudaGraphs, Graphs
from octavo_engine.ops.cuda_kept import KeptForward
from octavo_engine.ops.cuda_lora import CudaLora
from octavo_engine.ops.cuda_moe import CudaMoe
from octavo_engine.ops.cuda_quantized import CudaQuantized
from octavo_engine.ops.cuda_sampling import CudaSampling
from octavo_engine.ops.cuda_upload import Staging

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from octavo_engine.ops import KeptRows, KVLayout, Progress, TensorSpec

__all__ = ["CudaOps", "load_library", "why_no_device"]

_LIBRARY = Path(__file__).parent / "_native" / "liboctavo_cuda.so"
_LEAST = (8, 0)  # compute capability: cp.async and bfloat16 tensor cores

_libraries: dict[Path, Any] = {}


def load_library(path: Path = _LIBRARY) -> Any:
    """The loaded native library as a TVM FFI module, once a process. Raises OpsUnavailable."""
    if path not in _libraries:
        if not path.exists():
            raise OpsUnavailable(
                f"the CUDA library {path} is missing: octavo was built where nvcc was not found. Install the CUDA "
                "toolkit (12.8 or newer) and build again: `pip install --no-build-isolation -e .` or `cmake -S csrc -B "
                "build/native -G Ninja && cmake --build build/native`; or take EngineOptions.device='cpu'"
            )
        try:
            import tvm_ffi
        except ImportError as error:
            raise OpsUnavailable("the native ops need apache-tvm-ffi: pip install 'octavo[engine]'") from error
        _libraries[path] = tvm_ffi.load_module(str(path))
    return _libraries[path]


def why_no_device() -> str:
    """What CUDA says where torch, built with it, finds no device: no driver, an old one's version, none visible."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).partition(". ")[0].rstrip(".")
    return "no device is visible"


def _find_device(asked: str) -> tuple[torch.device, str]:
    """The device and its architecture; of "cuda" without a number the first that the kernels run on.

    Raises OpsUnavailable with what was found instead.
    """
    if torch.version.cuda is None:
        raise OpsUnavailable(
            f"device={asked!r}: torch {torch.__version__} is built without CUDA; install a CUDA build of torch, or "
            "take EngineOptions.device='cpu'"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = torch.device(asked).index
    if count <= (index or 0):
        why = "" if count else f": {why_no_device()}"
        raise OpsUnavailable(
            f"device={asked!r}: {count} CUDA devices were found{why} (torch {torch.__version__}, CUDA "
            f"{torch.version.cuda}); check the driver and CUDA_VISIBLE_DEVICES, or take EngineOptions.device='cpu'"
        )
    too_old = []
    for i in range(count) if index is None else [index]:
        capability = torch.cuda.get_device_capability(i)
        if capability >= _LEAST:
            return torch.device("cuda", i), f"sm_{capability[0]}{capability[1]}"
        too_old.append(f"{torch.cuda.get_device_name(i)} has compute capability {capability[0]}.{capability[1]}")
    raise OpsUnavailable(
        f"device={asked!r}: {', '.join(too_old)}; the kernels need {_LEAST[0]}.{_LEAST[1]} or newer, or take "
        "EngineOptions.device='cpu'"
    )


def _check_driver(library: Any, device: torch.device) -> None:
    """The library has a CUDA runtime of its own, which may be newer than torch's. Raises OpsUnavailable."""
    mistake = library.device_mistake()
    if mistake:
        raise OpsUnavailable(
            f"the CUDA library can't use {device}: {mistake}; install a newer driver, build octavo with an older CUDA "
            f"toolkit (torch {torch.__version__} has CUDA {torch.version.cuda}), or take EngineOptions.device='cpu'"
        )


class CudaOps(CudaAttention, CudaQuantized, CudaDense, CudaMoe, CudaFamilies, CudaSampling, CudaLora):
    """`Ops` on one CUDA device."""

    name = "cuda"
    asynchronous = True

    def __init__(
        self,
        device: str = "cuda",
        *,
        invariant: bool = False,
        emulated: Path | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """invariant: products of float weights too keep law 6, at the price of speed (ops.cuda_dense).

        emulated: the library of the emulated kernels, for tests: they work on tensors of the host. graphs: who
        captures, None the device itself; emulated kernels have none of their own. Raises OpsUnavailable.
        """
        if emulated is not None:
            self.device, self.isa = torch.device("cpu"), "emulated"
        else:
            self.device, self.isa = _find_device(device)
            torch.cuda.set_device(self.device)
            graphs = graphs or CudaGraphs(self.device)
        library = load_library(emulated or _LIBRARY)
        if emulated is None:
            _check_driver(library, self.device)
        self._graphs, self._staging = graphs, Staging(self.device)
        self._bind_attention(library)
        self._bind_quantized(library)
        self._bind_dense(library, invariant=invariant)
        self._bind_moe(library)
        self._bind_families(library)
        self._bind_sampling(library)
        self._bind_lora(library)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        return weights

    def record(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[TensorSpec],
        kept: KeptRows | None = None,
    ) -> Callable[..., Tensor]:
        if kept is not None:
            return KeptForward(self, function, inputs, kept, self._staging)
        return lambda *given: function(*self._staging.upload(given))

    def capture(
        self, work: Callable[[int], Tensor], most: int, progress: Progress | None = None
    ) -> Callable[[int], Tensor]:
        return work if self._graphs is None else Captured(work, most, self._graphs, progress)

    def weight_memory(self, nbytes: int) -> Tensor:
        return self._empty((nbytes,), torch.uint8)

    def page_bytes(self, layout: KVLayout) -> int:
        return cuda_cache.page_bytes(layout)

    def empty_cache(self, layout: KVLayout) -> tuple[Tensor, Tensor]:
        return cuda_cache.empty_cache(layout, self.device)
