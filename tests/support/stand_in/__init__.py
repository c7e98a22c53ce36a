"""A CUDA device for tests where there is none: torch.cuda's names, tensors, and the emulated kernels behind CudaOps.

It is no GPU and says nothing of kernels. It runs the lines of Python that are spelled torch.cuda, and fails where a
real device would, or might: operands on different devices, a wait within a capture or where none is expected
(`Device.waits`), pinned memory written to before a copy out of it is done, results read before they have arrived,
streams that don't wait for each other, memory that does not do. What is not modelled: time, several devices, threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import octavo_engine.ops.cuda as cuda_ops
from tests.support.cuda import emulated_library
from tests.support.stand_in.device import Capture, Device, Forbidden, Mark, Pool, Stream, spoil
from tests.support.stand_in.tensors import DeviceMode, DeviceTensor, FactoryMode

__all__ = ["Device", "DeviceTensor", "Forbidden", "device"]

GRAPH_BYTES = 1 << 16  # that a graph takes when it is first replayed, which torch's allocator knows nothing of


@contextmanager
def device(total: int = 1 << 30) -> Iterator[Device]:
    """The device, with so many bytes of memory, as CUDA's only one."""
    found = Device(total)
    with (
        mock.patch.multiple(torch.cuda, **_names(found)),
        mock.patch.object(torch.version, "cuda", "13.0"),
        mock.patch.object(torch, "empty", _empty(found)),  # in all threads, of which others may pin memory too
        mock.patch.object(cuda_ops, "load_library", return_value=_Library(found)),
        FactoryMode(found),
        DeviceMode(found),
    ):
        yield found


def _empty(on: Device) -> Callable[..., Tensor]:
    plain = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            return on.pinned.empty(size[0] if len(size) == 1 else size, options.get("dtype"))
        return plain(*size, **options)

    return empty


class _Library:
    """The emulated kernels, on the device's tensors alone."""

    def __init__(self, on: Device) -> None:
        self._device, self._library = on, emulated_library(check=False)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> Any:
            tensors = [x for x in arguments if isinstance(x, Tensor)]
            if wrong := [x for x in tensors if not isinstance(x, DeviceTensor)]:
                raise ValueError(f"{name}: a tensor of shape {list(wrong[0].shape)} is not on the device")
            hosts = [x.host if isinstance(x, DeviceTensor) else x for x in arguments]
            if tensors and not name.endswith("_ctas") and name != "lora_partials":
                blocks = [x.block for x in tensors if isinstance(x, DeviceTensor) and x.numel()]
                self._device.enqueue(name, blocks, blocks[:1])
                self._device.record(lambda: function(*hosts), hosts[:1])
            return function(*hosts)

        return call


def _names(on: Device) -> dict[str, Any]:
    def same(given: Any) -> None:
        if given is not None and torch.device("cuda" if isinstance(given, int) else given).type != "cuda":
            raise ValueError(f"Expected a cuda device, but got: {given}")

    class FakeStream(Stream):
        def __init__(self, device: Any = None, priority: int = 0) -> None:
            same(device)
            super().__init__(on)
            on.streams.add(self)

        def wait_stream(self, other: Stream) -> None:
            self.wait(other.mark)

        def wait_event(self, event: FakeEvent) -> None:
            self.wait(event.mark)

        def synchronize(self) -> None:
            on.forbid_in_capture("cudaStreamSynchronize")
            on.waits.append("a stream")
            on.finish(self.mark)

        cuda_stream = property(lambda self: self.number)

    on.default.__class__ = FakeStream

    class FakeEvent:
        def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
            self.mark: Mark = {}

        def record(self, stream: Stream | None = None) -> None:
            self.mark = dict((stream or on.current).mark)

        def synchronize(self) -> None:
            on.forbid_in_capture("cudaEventSynchronize")
            if on.lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            on.finish(self.mark)

        def elapsed_time(self, other: FakeEvent) -> float:
            return 1.0

    class FakeGraph:
        def __init__(self, keep_graph: bool = False) -> None:
            self._capture: Capture | None = None
            self._ended = self._sent = False

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            assert capture_error_mode in ("global", "thread_local", "relaxed")
            if on.current is on.default:
                raise RuntimeError("CUDA graphs must be captured on a non-default stream")
            assert on.capture is None
            shared = on.pools.setdefault(pool or object(), Pool())
            shared.graphs += 1
            on.capture = self._capture = Capture(on.current, shared)

        def capture_end(self) -> None:
            capture, on.capture = self._capture, None
            assert capture is not None
            if on.current is not capture.stream:
                raise RuntimeError("Capture must end on the same stream it began on.")
            if capture.broken is not None:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            for result in capture.results:
                spoil(result)
            self._ended = True

        def replay(self) -> None:
            assert self._ended, "Called CUDAGraph::replay without a preceding successful capture."
            assert self._capture is not None
            if not self._sent:
                on.outside += GRAPH_BYTES
            self._sent = True
            on.enqueue("graph", [], [])
            for again in self._capture.work:
                again()

        def __del__(self) -> None:
            if self._capture is not None:
                self._capture.pool.graphs -= 1
                on.outside -= GRAPH_BYTES * self._sent

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, on.current = on.current, chosen
        try:
            yield
        finally:
            on.current = before

    def memory(kind: str) -> Callable[..., Any]:
        def answer(device: Any = None) -> Any:
            same(device)
            return {
                "info": lambda: (on.total - on.reserved - on.outside, on.total),
                "live": lambda: on.live,
                "reserved": lambda: on.reserved,
                "peak": lambda: on.peak,
                "reset": lambda: setattr(on, "peak", on.live),
            }[kind]()

        return answer

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": same,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "a stand-in",
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="a stand-in", multi_processor_count=2, total_memory=on.total, major=9, minor=0
        ),
        "synchronize": lambda device=None: on.synchronize("the device"),
        "empty_cache": on.empty_cache,
        "mem_get_info": memory("info"),
        "memory_allocated": memory("live"),
        "memory_reserved": memory("reserved"),
        "max_memory_allocated": memory("peak"),
        "reset_peak_memory_stats": memory("reset"),
        "graph_pool_handle": lambda: object(),
        "get_allocator_backend": lambda: "native",
        "current_stream": lambda device=None: on.current,
        "default_stream": lambda device=None: on.default,
        "stream": stream,
        "Stream": FakeStream,
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
        "_lazy_init": lambda: None,
    }
