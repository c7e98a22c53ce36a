"""Recording: a forward is run once with symbolic tensors, and every native call it makes becomes an entry of a program.

A program runs as one native call (csrc/cpu/program_binding.cpp): no Python and no allocation between its ops. What
they hand each other lies in one arena, where a buffer's place is free again after its last reader. Nothing here knows
an op: what is recorded is whatever a backend hands to its native functions. So it must hand them tensors as they came,
and may ask a tensor for nothing but its shape and dtype; what depends on the number of rows belongs behind the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
import tvm_ffi
from torch import Tensor

from octavo_engine.ops import KeptRows, TensorSpec

__all__ = ["NotRecordable", "Program", "arena_offsets", "record"]

_LINE = 64
_DLPACK = {  # (type code, bits)
    torch.float32: (2, 32),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.int8: (0, 8),
    torch.uint8: (1, 8),
    torch.int32: (0, 32),
    torch.int64: (0, 64),
}


class NotRecordable(TypeError):
    """A forward did something with a tensor, while it was recorded, that is not the call of a native op."""


class _Dim:
    """A dimension that varies from run to run. It is handed on, never computed with."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def _refuse(self, *_: object) -> NoReturn:
        raise NotRecordable(
            f"the number of rows {self.name!r} is not known while a forward is recorded; decide by it in the native op"
        )

    def __eq__(self, other: object) -> bool:
        return True if other is self else self._refuse()

    def __hash__(self) -> int:
        return hash(self.name)

    __int__ = __index__ = __bool__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __neg__ = _refuse


class _Symbol:
    """Stands for a tensor while recording."""

    __slots__ = ("dtype", "index", "shape")

    def __init__(self, index: int, shape: tuple[Any, ...], dtype: torch.dtype) -> None:
        self.index, self.shape, self.dtype = index, shape, dtype

    def _refuse(self, *_: object) -> NoReturn:
        raise NotRecordable("a recorded forward computes by native ops alone; of a tensor it may ask shape and dtype")

    def __getattr__(self, name: str) -> NoReturn:
        raise NotRecordable(f"a recorded forward asked a tensor for .{name}; it may ask for shape and dtype alone")

    __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _refuse
    __getitem__ = __setitem__ = __len__ = __bool__ = __float__ = __int__ = __iter__ = _refuse


@dataclass
class _Buffer:
    symbol: _Symbol
    first: int = -1  # the calls between which it is alive, both included
    last: int = -1

    @property
    def row_bytes(self) -> int:
        size: int = self.symbol.dtype.itemsize
        for n in self.symbol.shape[1:]:
            size *= n
        return -(-size // _LINE) * _LINE


@dataclass
class _Call:
    function: Any
    values: list[int] = field(default_factory=list)
    arguments: list[Any] = field(default_factory=list)


class _Recording:
    """What a forward did so far. Symbols below `num_inputs` are the caller's, the others lie in the arena."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._dims: dict[str, _Dim] = {}
        self.inputs = [self._input(i, spec) for i, spec in enumerate(inputs)]
        self.buffers: list[_Buffer] = []
        self.calls: list[_Call] = []

    def _input(self, index: int, spec: TensorSpec) -> _Symbol:
        shape = [self._dims.setdefault(n, _Dim(n)) if isinstance(n, str) else n for n in spec.shape]
        return _Symbol(index, tuple(shape), spec.dtype)

    def symbol(self, index: int) -> _Symbol:
        inputs = self.inputs
        return inputs[index] if index < len(inputs) else self.buffers[index - len(inputs)].symbol

    def rows_input(self, symbol: _Symbol) -> int:
        """The first input that has as many rows."""
        return next(given.index for given in self.inputs if given.shape[0] is symbol.shape[0])

    def empty(self, shape: Sequence[Any], dtype: torch.dtype) -> _Symbol:
        rows, *widths = shape
        if not isinstance(rows, _Dim) or any(isinstance(n, _Dim) for n in widths):
            raise NotRecordable("a tensor of a recorded forward has a varying number of rows of one size")
        symbol = _Symbol(len(self.inputs) + len(self.buffers), (rows, *widths), dtype)
        self.buffers.append(_Buffer(symbol))
        return symbol

    def call(self, function: Any, arguments: Sequence[Any]) -> None:
        call, now = _Call(function), len(self.calls)
        for argument in arguments:
            symbolic = isinstance(argument, _Symbol)
            call.values.append(argument.index if symbolic else -1)
            call.arguments.append(None if symbolic else argument)
            if symbolic and argument.index >= len(self.inputs):
                buffer = self.buffers[argument.index - len(self.inputs)]
                buffer.first = now if buffer.first < 0 else buffer.first
                buffer.last = now
        self.calls.append(call)


class Program:
    """A recorded forward: called with tensors as its inputs were specified, it returns a new tensor.

    It keeps its weights and what else the forward mentioned alive. Not for two threads at once.
    """

    def __init__(self, make_program: Any, recording: _Recording, result: _Symbol) -> None:
        inputs, buffers = recording.inputs, recording.buffers
        self._rows = recording.rows_input(result)
        self._width, self._dtype = tuple(result.shape[1:]), result.dtype
        # The result is one more input, so that the caller owns it.
        number = {symbol.index: symbol.index for symbol in inputs} | {result.index: len(inputs)}
        kept = [b for b in buffers if b.symbol is not result and b.first >= 0]
        number |= {b.symbol.index: len(inputs) + 1 + i for i, b in enumerate(kept)} | {-1: -1}
        region_inputs = sorted({recording.rows_input(b.symbol) for b in kept})
        regions: list[list[int]] = []
        places: dict[int, list[int]] = {}
        for region, rows in enumerate(region_inputs):
            of_region = [b for b in kept if recording.rows_input(b.symbol) == rows]
            offsets, size = arena_offsets([(b.row_bytes, b.first, b.last) for b in of_region])
            regions.append([rows, size])
            places |= {b.symbol.index: [region, offset] for b, offset in zip(of_region, offsets, strict=True)}
        self.num_calls = len(recording.calls)
        self.row_bytes = sum(size for _, size in regions)
        self._run = make_program(
            len(inputs) + 1,
            regions,
            [[*places[b.symbol.index], *_DLPACK[b.symbol.dtype], *b.symbol.shape[1:]] for b in kept],
            [[call.function, [number[v] for v in call.values], call.arguments] for call in recording.calls],
        )

    def __call__(self, *inputs: Tensor) -> Tensor:
        out = torch.empty((inputs[self._rows].shape[0], *self._width), dtype=self._dtype)
        self._run(*inputs, out)
        return out


def arena_offsets(buffers: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """(size, first, last) of buffers, alive from call first to last, both included -> their offsets, the whole size.

    In the order given each takes the lowest gap that holds it among those alive at the same time.
    """
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    for size, first, last in buffers:
        offset = 0
        for begin, end, other_first, other_last in sorted(placed):
            if other_last < first or last < other_first:
                continue
            if offset + size <= begin:
                break
            offset = max(offset, end)
        placed.append((offset, offset + size, first, last))
    return [offset for offset, *_ in placed], max((end for _, end, *_ in placed), default=0)


@contextmanager
def _recording(ops: Any, recording: _Recording) -> Iterator[None]:
    """`ops` records: its `_empty` and every native function bound to it are replaced meanwhile."""
    before = dict(vars(ops))

    def recorder(function: Any) -> Callable[..., None]:
        return lambda *arguments: recording.call(function, arguments)

    try:
        for name, value in before.items():
            if isinstance(value, tvm_ffi.Function):
                setattr(ops, name, recorder(value))
        ops._empty = recording.empty
        yield
    finally:
        vars(ops).clear()
        vars(ops).update(before)


def _keep_rows(
    recording: _Recording, result: _Symbol, specs: Sequence[TensorSpec], kept: KeptRows, gather: Any
) -> tuple[_Recording, _Symbol]:
    """The same calls, but from the last one that writes every row on, on the kept rows alone.

    That needs no knowledge of an op: by law 6 a row's result depends on its own inputs and its own sequence only, so
    a call may be given any of its rows.
    """
    rows = specs[kept.writes].shape[0]
    last = max((i for i, call in enumerate(recording.calls) if kept.writes in call.values), default=-1)
    if last < 0 or result.shape[0] is not recording.inputs[kept.writes].shape[0]:
        raise NotRecordable(f"no call reads input {kept.writes}, or the result has other rows than it")
    again = [
        replace(specs[i], shape=tuple(f"kept {n}" if isinstance(n, str) else n for n in specs[i].shape))
        for i in kept.inputs
    ]
    new = _Recording([*specs, TensorSpec((f"kept {rows}",), torch.int32), *again])
    chosen = new.inputs[len(specs)]
    whole: dict[int, _Symbol] = dict(enumerate(new.inputs[: len(specs)]))
    narrow = dict(zip(kept.inputs, new.inputs[len(specs) + 1 :], strict=True))

    def narrowed(index: int) -> _Symbol:
        if index not in narrow:
            symbol = recording.symbol(index)
            if symbol.shape[0] is not recording.inputs[kept.writes].shape[0]:
                raise NotRecordable(f"a call behind the last writing one reads rows that are not {rows!r}'s")
            narrow[index] = new.empty((chosen.shape[0], *symbol.shape[1:]), symbol.dtype)
            if index in whole:
                new.call(gather, (narrow[index], whole[index], chosen))
        return narrow[index]

    def before(index: int) -> _Symbol:
        if index not in whole:
            old = recording.symbol(index)
            whole[index] = new.empty((new.inputs[recording.rows_input(old)].shape[0], *old.shape[1:]), old.dtype)
        return whole[index]

    for i, call in enumerate(recording.calls):
        place = before if i <= last else narrowed
        arguments = zip(call.values, call.arguments, strict=True)
        new.call(call.function, [argument if value < 0 else place(value) for value, argument in arguments])
    return new, narrowed(result.index)


def record(
    ops: Any,
    make_program: Any,
    function: Callable[..., Tensor],
    inputs: Sequence[TensorSpec],
    kept: KeptRows | None = None,
    gather: Any = None,
) -> Program:
    """`function(*inputs)` over `ops` as a Program; `kept`: see Ops.record, `gather` being the native gather_rows.

    Raises NotRecordable, and what `function` raises.
    """
    recording = _Recording(inputs)
    with _recording(ops, recording):
        result: Any = function(*recording.inputs)
    if not isinstance(result, _Symbol) or result.index < len(inputs):
        raise NotRecordable("a recorded forward returns a tensor that one of its ops made")
    if kept is not None:
        recording, result = _keep_rows(recording, result, inputs, kept, gather)
    return Program(make_program, recording, result)
