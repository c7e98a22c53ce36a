"""Tensors that say they are on a CUDA device, and lie on the host; what torch refuses to mix is refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from tests.support.stand_in.device import Block, Device, Forbidden

__all__ = ["DeviceMode", "DeviceTensor", "FactoryMode", "wrap"]

CUDA = torch.device("cuda", 0)
aten: Any = torch.ops.aten
# Whose result the host looks at, or whose shape it has to know.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.is_nonzero.default,
}
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor,
    aten._index_put_impl_.default, aten._index_put_impl.default,
}  # fmt: skip


class DeviceTensor(Tensor):
    """host: the same elements, as a tensor of the host."""

    host: Tensor
    block: Block
    device_of: Device
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor, block: Block, device: Device) -> DeviceTensor:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=CUDA
        )
        made.host, made.block, made.device_of = host, block, device
        found: DeviceTensor = made
        return found

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    # These, before they dispatch, ask for a guard of the device that only a CUDA build of torch has.
    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
        found: Tensor = Dispatcher(self.device_of).copy(aten.copy_.default, (self, source, non_blocking), {})
        return found

    def contiguous(self, memory_format: Any = torch.contiguous_format) -> Tensor:
        return self if self.is_contiguous() else self.clone(memory_format=memory_format)

    def __invert__(self) -> Tensor:
        return torch.bitwise_not(self)

    def nonzero(self) -> Tensor:  # type: ignore[override]
        found: Tensor = aten.nonzero.default(self)
        return found

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return _indexed(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        items = index if isinstance(index, tuple) else (index,)
        if any(isinstance(item, (Tensor, list)) for item in items):
            whole = [None if isinstance(item, slice) else torch.as_tensor(item) for item in items]
            put = value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
            aten.index_put_.default(self, whole, put)
            return
        part = _indexed(self, index)
        part.copy_(value) if isinstance(value, Tensor) else part.fill_(value)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return iter(self.unbind(0))

    def __repr__(self, **options: Any) -> str:
        return f"DeviceTensor({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs))
        device = next(x.device_of for x in flat if isinstance(x, DeviceTensor))
        return Dispatcher(device).call(func, args, kwargs or {})


def _indexed(x: Any, index: Any) -> Any:
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [i for i in items if not isinstance(i, Tensor)]:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (x.ndim - len(items) + 1 + items.count(None))
    dim, tensors = 0, [None] * x.ndim
    for item in items:
        if isinstance(item, slice):
            x = aten.slice.Tensor(x, dim, item.start, item.stop, item.step or 1)
        elif item is None:
            x = aten.unsqueeze.default(x, dim)
        elif isinstance(item, int):
            x = aten.select.int(x, dim, item)
            continue
        else:
            tensors[dim] = item if isinstance(item, Tensor) else torch.tensor(item)
        dim += 1
    return aten.index.Tensor(x, tensors[: x.ndim]) if any(t is not None for t in tensors) else x


def wrap(host: Tensor, device: Device, block: Block | None = None) -> DeviceTensor:
    if block is None:
        block = device.allocate(-(-max(1, host.untyped_storage().nbytes()) // 512) * 512)
        device.allocated[host.data_ptr()] = host
    return DeviceTensor(host, block, device)


class DeviceMode(TorchDispatchMode):
    """While it is on, factories make tensors of the device."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatcher.call(func, args, kwargs or {})


class FactoryMode(TorchFunctionMode):
    """For what torch makes of Python's numbers or of foreign memory, which it does without dispatching."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on = kwargs.get("device")
        if func not in (torch.tensor, torch.as_tensor) or on is None or torch.device(on).type != "cuda":
            return func(*args, **kwargs)
        if hasattr(args[0], "__cuda_array_interface__"):
            return self._foreign(args[0].__cuda_array_interface__)
        return func(*args, **kwargs | {"device": "cpu"}).to(on)

    def _foreign(self, found: dict[str, Any]) -> DeviceTensor:
        """Memory that somebody else owns."""
        (address, _), (size,) = found["data"], found["shape"]
        memory = self.device.allocated[address]
        assert memory.nbytes == size
        return wrap(memory.view(-1).view(torch.uint8), self.device, Block(0, self.device.memory))


@lru_cache(None)
def _written(func: Any) -> tuple[str, ...]:
    return tuple(a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)


@lru_cache(None)
def _composite(func: Any) -> bool:
    """Whether torch makes it of others; in inference mode it comes here whole."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@lru_cache(None)
def _view(func: Any) -> bool:
    """Whether what it returns shares an argument's memory."""
    infos = [r.alias_info for r in func._schema.returns]
    return bool(infos) and all(i is not None and not i.is_write for i in infos)


class Dispatcher:
    def __init__(self, device: Device) -> None:
        self.device, self.pinned = device, device.pinned

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on = kwargs.get("device")
        there = on is not None and torch.device(on).type == "cuda"
        if func in (aten.copy_.default, aten._to_copy.default) and (there or any(map(_is_there, flat))):
            return self.copy(func, args, kwargs)
        if there and flat and _composite(func):
            with DeviceMode(self.device):
                return func.decompose(*args, **kwargs)
        if not there and not any(map(_is_there, flat)):
            return func(*args, **kwargs)
        if func is aten._pin_memory.default or func is aten.is_pinned.default:
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor'; only dense CPU tensors can be pinned")
        self._check(func, flat)
        return self._run(func, args, kwargs)

    def _check(self, func: Any, flat: list[Tensor]) -> None:
        """Raises where torch does: for operands on different devices."""
        here = [x for x in flat if not _is_there(x) and x.ndim]
        if func in WAITING:
            self.device.synchronize(str(func))
        if here and func in INDEXING:
            self.device.synchronize(f"{func}: an index of the host")
        elif func in INDEXING and any(x.dtype in (torch.bool, torch.uint8) for x in flat[1:]):
            self.device.synchronize(f"{func}: a mask")
        elif here:
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found at least two")

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hosts, options = tree_map_only(DeviceTensor, lambda x: x.host, (args, kwargs))
        if "device" in options:
            options = options | {"device": torch.device("cpu"), "pin_memory": False}
        out = _on_host(func, hosts, options)
        wrapped = {id(x): x for x in tree_flatten((args, kwargs))[0] if isinstance(x, DeviceTensor)}
        written = [x for name in _written(func) for x in self._named(func, name, args, kwargs)]
        if written:
            self._enqueue(func, list(wrapped.values()), written)
            self.device.record(lambda: _on_host(func, hosts, options))
            by_host = {id(x.host): x for x in wrapped.values()}
            return tree_map_only(Tensor, lambda x: by_host[id(x)], out)
        if _view(func):
            source = next(iter(wrapped.values()))
            with torch.inference_mode(source.is_inference()):  # a view is of its base's kind
                return tree_map_only(Tensor, lambda x: wrap(x, self.device, source.block), out)
        results = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        shared = {x.host.untyped_storage().data_ptr(): x.block for x in wrapped.values() if x.host.numel()}

        def put(x: Tensor) -> DeviceTensor:
            return wrap(x, self.device, shared.get(x.untyped_storage().data_ptr()) if x.numel() else None)

        made = tree_map_only(Tensor, put, out)
        if not str(func).startswith(("aten.empty", "aten.new_empty")):
            self._enqueue(func, list(wrapped.values()), [x for x in tree_flatten(made)[0] if _is_there(x)])

            def again() -> None:
                for x, y in zip(results, tree_flatten(_on_host(func, hosts, options))[0], strict=True):
                    x.copy_(y)

            self.device.record(again, results)
        return made

    def _named(self, func: Any, name: str, args: Any, kwargs: Any) -> Iterator[DeviceTensor]:
        names = [a.name for a in func._schema.arguments]
        value = kwargs[name] if name in kwargs else args[names.index(name)]
        return (x for x in tree_flatten(value)[0] if isinstance(x, DeviceTensor))

    def _enqueue(self, func: Any, reads: list[DeviceTensor], writes: list[DeviceTensor]) -> None:
        self.device.enqueue(str(func), [x.block for x in reads], [x.block for x in writes])

    # ---- copies ------------------------------------------------------------------------------------------------

    def copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if func is aten.copy_.default:
            to, source = args[0], args[1]
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            source, waits = args[0], not kwargs.get("non_blocking", False)
            on = torch.device(kwargs.get("device") or source.device)
            dtype = kwargs.get("dtype") or source.dtype
            pin = bool(kwargs.get("pin_memory"))
            form = kwargs.get("memory_format") or torch.preserve_format
            like = source.host if isinstance(source, DeviceTensor) else source
            empty = torch.empty_like(like, dtype=dtype, memory_format=form, device="cpu")
            if on.type == "cuda":
                to = wrap(empty, self.device)
            else:
                to = self.pinned.empty(source.shape, dtype) if pin else empty
        if isinstance(to, DeviceTensor) and isinstance(source, DeviceTensor):
            self._enqueue(func, [source], [to])
            to.host.copy_(source.host)
            self.device.record(lambda: to.host.copy_(source.host), [to.host] if to is not args[0] else [])
        elif isinstance(to, DeviceTensor):
            self._send(to, source, waits)
        else:
            self._fetch(to, source, waits)
        return to

    def _send(self, to: DeviceTensor, source: Tensor, waits: bool) -> None:
        device, stream = self.device, self.device.current
        if source.numel() and not self.pinned.holds(source):
            device.forbid_in_capture("a copy out of pageable memory")
            device.waits.append(f"a copy of {list(source.shape)} out of pageable memory")
        device.enqueue("to the device", [], [to.block])
        to.host.copy_(source)
        device.record(lambda: to.host.copy_(source))
        if not source.numel():
            return
        was, dtype = source.clone(), source.dtype

        def arrived() -> None:
            if not torch.equal(source.view(torch.uint8) if dtype.itemsize == 1 else source, was) and not (
                dtype.is_floating_point and torch.equal(source.nan_to_num(), was.nan_to_num())
            ):
                raise Forbidden(
                    f"pinned memory of {list(source.shape)} was written to while a copy of it was under way"
                )

        if self.pinned.holds(source):
            stream.pending.append((stream.length, arrived))
        if waits:
            device.synchronize("a copy to the device that is waited for")

    def _fetch(self, to: Tensor, source: DeviceTensor, waits: bool) -> None:
        device, stream = self.device, self.device.current
        device.forbid_in_capture("a copy to the host")
        device.enqueue("to the host", [source.block], [])
        value = source.host.clone()
        if waits or not self.pinned.holds(to):
            device.synchronize(f"a copy of {list(source.shape)} to the host that is waited for")
            to.copy_(value)
            return
        stream.pending.append((stream.length, lambda: to.copy_(value)))


def _is_there(x: Any) -> bool:
    return isinstance(x, DeviceTensor)


def _on_host(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """func, where only a device has it too."""
    if func is aten.mm.dtype:
        return (args[0].float() @ args[1].float()).to(args[2])
    return func(*args, **kwargs)
