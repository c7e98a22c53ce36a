"""From a checkpoint's published tensors to layers, with every tensor accounted for."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from octavo_engine.layers.embedding import Embedding
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.norm import LayerNorm, RMSNorm
from octavo_engine.ops import Activation

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops, QuantizedWeight
    from octavo_engine.quant.scheme import Formats, Scheme

__all__ = ["Checkpoint", "CheckpointMismatch", "Loader", "Progress", "packed_name"]

Progress = Callable[[str, int, int, str], None]
"""progress(stage, done, total, text)."""


class Checkpoint(Protocol):
    """Tensors by published name, read one at a time (octavo_engine.weights has the readers).

    A reader that has to convert anyway may also have get_as(name, dtype), one of a file that holds quantised tensors
    get_quantized(name) -> QuantizedWeight | None, one of a mapped file release(name), which gives the tensor's pages
    back to the system.
    """

    def names(self) -> Iterable[str]: ...

    def get(self, name: str) -> Tensor: ...

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor as stored."""
        ...


class CheckpointMismatch(Exception):
    """The checkpoint's tensors are not the ones that its config calls for."""


def packed_name(names: tuple[str, ...]) -> str:
    """The packed weight of published layers that were stacked; that of a single one keeps its name."""
    return "+".join(names) + ".weight"


class Loader:
    """Builds layers out of the tensors under `prefix`, and knows at the end what was not used."""

    def __init__(
        self,
        ops: Ops,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        formats: Formats,
        progress: Progress | None = None,
        *,
        made: dict[str, LinearWeight | Tensor] | None = None,
    ) -> None:
        """dtype: of weights that stay in floats, and with it of activations. made: takes all that layers hold."""
        self.ops, self.dtype, self.formats = ops, dtype, formats
        self.act_dtype = ops.activation_dtype(dtype)
        self.prefix = ""
        self._made = made
        self._checkpoint, self._progress = checkpoint, progress
        self._get_as: Callable[[str, torch.dtype], Tensor] | None = getattr(checkpoint, "get_as", None)
        self._get_quantized: Callable[[str], QuantizedWeight | None] | None = getattr(checkpoint, "get_quantized", None)
        self._release: Callable[[str], None] = getattr(checkpoint, "release", lambda name: None)
        self._unread = {name: checkpoint.nbytes(name) for name in checkpoint.names()}
        self._total = sum(self._unread.values())
        self._done = [0]

    def at(self, prefix: str) -> Loader:
        """The same checkpoint, seen from `prefix` on."""
        view = copy.copy(self)
        view.prefix = self.prefix + prefix
        return view

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._unread

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor as stored, or rounded to `dtype`; it may share memory with the file.

        Raises CheckpointMismatch where it is missing or of another shape.
        """
        full = self.prefix + name
        if full not in self._unread:
            others = ", ".join(list(self._unread)[:4]) or "none"
            raise CheckpointMismatch(f"tensor {full} is missing; not used so far: {others}")
        if dtype is None:
            value = self._checkpoint.get(full)
        elif self._get_as is not None:
            value = self._get_as(full, dtype)
        else:
            value = self._checkpoint.get(full).to(dtype)
        if shape and tuple(value.shape) != shape:
            raise CheckpointMismatch(f"tensor {full} has shape {tuple(value.shape)}, the config says {shape}")
        self._account(full)
        return value

    def quantized(self, name: str, out_features: int, in_features: int) -> QuantizedWeight | None:
        """The tensor in the quantised form that the file holds it in; None, and still unread, where it holds floats."""
        full = self.prefix + name
        if self._get_quantized is None or full not in self._unread:
            return None
        value = self._get_quantized(full)
        if value is None:
            return None
        if tuple(value.codes.shape) != (out_features, in_features):
            raise CheckpointMismatch(
                f"tensor {full} has shape {tuple(value.codes.shape)}, the config says {(out_features, in_features)}"
            )
        self._account(full)
        return value

    def _account(self, full: str) -> None:
        self._done[0] += self._unread.pop(full)
        if self._progress is not None:
            self._progress("load", self._done[0], self._total, full)

    def embedding(self, name: str, rows: int, width: int, *, skip: int = 0) -> Embedding:
        """A lookup table of floats; `skip` leaves out first rows that no id reaches."""
        return Embedding(self.ops, self._table(f"{name}.weight", rows, width, skip))

    def embedding_and_head(
        self, name: str, rows: int, width: int, *, head: str, tied: bool
    ) -> tuple[Embedding, Linear]:
        """The token embedding and the projection back to the vocabulary; one packed weight where they are tied.

        In a tied model the embedding wins over a `head` tensor that the file may carry.
        """
        if tied:
            self.ignore(re.escape(f"{head}.weight"))
            weight = self._weight((name,), (rows,), width, self.formats.head)
            return Embedding(self.ops, weight), self._linear(weight, None, (rows,), Parallel.COLUMN)
        if self.formats.embedding is None:
            embed = self.embedding(name, rows, width)
        else:
            embed = Embedding(self.ops, self._weight((name,), (rows,), width, self.formats.embedding))
        root = self.at("")
        root.prefix = ""
        weight = root._weight((head,), (rows,), width, self.formats.head)
        return embed, self._linear(weight, None, (rows,), Parallel.COLUMN)

    def rms_norm(self, name: str, size: int, eps: float) -> RMSNorm:
        return RMSNorm(self.ops, self.vector(f"{name}.weight", size), eps, self.act_dtype)

    def layer_norm(self, name: str, size: int, eps: float = 1e-5, *, affine: bool = True) -> LayerNorm:
        weight = self.vector(f"{name}.weight", size) if affine else None
        bias = self.vector(f"{name}.bias", size) if affine else None
        return LayerNorm(self.ops, weight, bias, eps, self.act_dtype)

    def linear(
        self,
        names: str | Sequence[str],
        out_features: int | Sequence[int],
        in_features: int,
        parallel: Parallel,
        *,
        bias: bool,
        act: Activation = Activation.NONE,
        gated: bool = False,
        transposed: bool = False,
        parts: tuple[int, ...] | None = None,
    ) -> Linear:
        """One Linear of one published layer, or of several that share their input, stacked by rows.

        parts: where a published layer is itself a stack, its parts' sizes (see Linear).
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        sizes = (out_features,) if isinstance(out_features, int) else tuple(out_features)
        weight = self._weight(names, sizes, in_features, self.formats.linear, gated=gated, transposed=transposed)
        biases = [self.vector(f"{name}.bias", size) for name, size in zip(names, sizes, strict=True) if bias]
        return self._linear(weight, torch.cat(biases) if biases else None, parts or sizes, parallel, act)

    def _linear(
        self,
        weight: LinearWeight,
        bias: Tensor | None,
        parts: tuple[int, ...],
        parallel: Parallel,
        act: Activation = Activation.NONE,
    ) -> Linear:
        return Linear(self.ops, weight, bias, parts=parts, parallel=parallel, act=act)

    # ---- what a layer is made of ------------------------------------------------------------------------------

    def vector(self, name: str, size: int) -> Tensor:
        """[size] float32: a bias or a norm's weight."""
        value = self.tensor(name, size).to(self.ops.device, torch.float32, copy=True)
        self._keep(name, value)
        return value

    def _table(self, name: str, rows: int, width: int, skip: int) -> Tensor:
        stored = self.tensor(name, rows, width, dtype=self.dtype)[skip:]
        table = stored.to(self.ops.device, copy=True, memory_format=torch.contiguous_format)
        self._release(self.prefix + name)
        self._keep(name, table)
        return table

    def _weight(
        self,
        names: tuple[str, ...],
        sizes: tuple[int, ...],
        in_features: int,
        scheme: Scheme,
        *,
        gated: bool = False,
        transposed: bool = False,
    ) -> LinearWeight:
        """The weights of published layers, stacked by rows and packed."""
        read = [
            scheme.read(self, name, size, in_features, transposed=transposed)
            for name, size in zip(names, sizes, strict=True)
        ]
        weight = scheme.pack(self.ops, read, gated=gated)
        for name in names:
            self._release(f"{self.prefix}{name}.weight")
        self._keep(packed_name(names), weight)
        return weight

    def _keep(self, name: str, value: LinearWeight | Tensor) -> None:
        if self._made is not None:
            self._made[self.prefix + name] = value

    def ignore(self, pattern: str) -> None:
        """Account for tensors that carry nothing: buffers that the equations give, duplicates of tied weights."""
        for name in [name for name in self._unread if re.fullmatch(pattern, name)]:
            self._done[0] += self._unread.pop(name)

    def finish(self) -> None:
        """Every tensor must have been read or ignored."""
        if self._unread:
            some = ", ".join(list(self._unread)[:8])
            raise CheckpointMismatch(f"{len(self._unread)} tensors of the checkpoint are not used: {some}")
