"""Linear layers that rows of a batch run with adapters of their own (LoRA, arXiv 2106.09685; S-LoRA, arXiv 2311.03285).

Which row has which adapter is the same for all layers of a step. A forward in which none has one is not changed at all:
`Adapters.rows` is then None, and a LoraLinear is a Linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo_engine.layers.linear import Linear
from octavo_engine.ops.lora import LoraTable, LowRank

__all__ = ["AdapterMismatch", "Adapters", "LoraLinear", "ReadyPart"]

_HEADS = ("lm_head", "embed_out", "output")


class AdapterMismatch(Exception):
    """An adapter is not one for this model."""


@dataclass(frozen=True)
class ReadyPart:
    """A LowRank in the layout of its layer, to be put into that one's table: down [r, K], up [r, N]."""

    table: LoraTable
    part: int
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class _Place:
    """Where a published layer's rows are in a LoraLinear. rows: as in Loader.linear."""

    table: LoraTable
    part: int
    out_features: int
    in_features: int
    rows: Tensor | None


class Adapters:
    """All layers of a model that take adapters, `count` adapters at most, by number.

    rows: [T] int32 while a forward with adapters runs (or is recorded), the adapter of each row, -1 for none.
    """

    def __init__(self, count: int, dtype: torch.dtype, rank: int = 64) -> None:
        """dtype: of activations. rank: the most of an adapter, where layers keep room for it."""
        self.count, self.dtype, self.rank = count, dtype, rank
        self._pinned = False
        self.rows: Tensor | None = None
        self._places: dict[str, _Place] = {}

    @contextmanager
    def of(self, rows: Tensor) -> Iterator[None]:
        """A forward in which row i has adapter rows[i]."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None

    def wrap(self, linear: Linear, names: Sequence[str], sizes: Sequence[int], rows: Tensor | None) -> LoraLinear:
        """linear: of the published layers `names`, `sizes` rows each."""
        weight, ops = linear.weight, linear.ops
        self._pinned = ops.device.type == "cuda"  # a copy from elsewhere waits for the steps that are under way
        table = ops.lora_table(weight, sizes, adapters=self.count, rank=self.rank, dtype=self.dtype)
        for part, (name, size) in enumerate(zip(names, sizes, strict=True)):
            self._places[name] = _Place(table, part, size, weight.in_features, rows)
        return LoraLinear(linear, self, table)

    @property
    def nbytes(self) -> int:
        """What all layers hold for adapters, loaded or not."""
        return sum(table.nbytes for table in {place.table for place in self._places.values()})

    def prepare(self, parts: Sequence[LowRank]) -> list[ReadyPart]:
        """In any thread. Raises AdapterMismatch."""
        ready = []
        for part in parts:
            place = self._find(part.module)
            found, rank = (tuple(part.down.shape), tuple(part.up.shape)), len(part.down)
            if found != ((rank, place.in_features), (place.out_features, rank)):
                raise AdapterMismatch(
                    f"{part.module}: lora_A {found[0]} and lora_B {found[1]} do not fit a layer of {place.in_features} "
                    f"inputs and {place.out_features} outputs"
                )
            up = part.up if place.rows is None else part.up[place.rows]
            # Copies: the file may change under a mapped tensor.
            down, up = (
                matrix.to(self.dtype, copy=True, memory_format=torch.contiguous_format) for matrix in (part.down, up.T)
            )
            ready.append(ReadyPart(place.table, place.part, down, up, part.scale))
        return _pinned(ready) if self._pinned else ready

    def put(self, adapter: int, parts: Sequence[ReadyPart]) -> None:
        """Between two steps."""
        for ready in parts:
            ready.table.put(adapter, ready.part, ready.down, ready.up, ready.scale)

    def drop(self, adapter: int) -> None:
        """Between two steps, when nobody uses it any more."""
        for place in self._places.values():
            place.table.drop(adapter)

    def _find(self, module: str) -> _Place:
        """By its name, or by one that differs in the roots that wrappers put before it ("transformer.", "model.")."""
        found = self._places.get(module)
        if found is not None:
            return found
        alike = [
            place for name, place in self._places.items() if name.endswith(f".{module}") or module.endswith(f".{name}")
        ]
        if len(alike) == 1:
            return alike[0]
        some = ", ".join(sorted({name.rpartition(".")[2] for name in self._places}))
        what = "the model has no such linear layer that takes an adapter"
        if ".experts." in module:
            what = "experts of a mixture take no adapters"
        elif module.rpartition(".")[2] in _HEADS:
            what = "the projection to the vocabulary takes no adapters"
        raise AdapterMismatch(f"{module}: {what}; target_modules may name {some}")


def _pinned(parts: Sequence[ReadyPart]) -> list[ReadyPart]:
    """In one block: to pin memory takes a millisecond or more, during which nothing can be launched."""
    matrices = [matrix for part in parts for matrix in (part.down, part.up)]
    block = torch.empty(sum(x.numel() for x in matrices), dtype=matrices[0].dtype, pin_memory=True)
    places = [
        place.view(x.shape).copy_(x)
        for place, x in zip(block.split_with_sizes([x.numel() for x in matrices]), matrices, strict=True)
    ]
    return [replace(part, down=places[2 * i], up=places[2 * i + 1]) for i, part in enumerate(parts)]


class LoraLinear(Linear):
    """A Linear, and for rows that have an adapter what that adds before the activation."""

    __slots__ = ("adapters", "table")

    def __init__(self, linear: Linear, adapters: Adapters, table: LoraTable) -> None:
        super().__init__(
            linear.ops, linear.weight, linear.bias, parts=linear.parts, parallel=linear.parallel, act=linear.act
        )
        self.adapters, self.table = adapters, table

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        rows = self.adapters.rows
        if rows is None:
            return super().__call__(x, out_dtype)
        y = self.ops.linear(x, self.table.plain, None, out_dtype=torch.float32)
        self.ops.lora_add_(y, x, rows, self.table)
        return self.ops.finish_linear(y, self.bias, self.weight, act=self.act, out_dtype=out_dtype or x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        super().add_to(residual, x)
        rows = self.adapters.rows
        if rows is not None:
            self.ops.lora_add_(residual, x, rows, self.table)
