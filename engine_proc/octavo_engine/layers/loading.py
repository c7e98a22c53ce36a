"""From a checkpoint's published tensors to layers, with every tensor accounted for."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from octavo_engine.layers.config import UnsupportedModel
from octavo_engine.layers.embedding import Embedding
from octavo_engine.layers.linear import Linear, Parallel
from octavo_engine.layers.norm import LayerNorm, RMSNorm
from octavo_engine.ops import Activation
from octavo_engine.quant.scheme import take_rows

if TYPE_CHECKING:
    from octavo_engine.layers.lora import Adapters
    from octavo_engine.ops import LinearWeight, Ops, QuantizedWeight
    from octavo_engine.quant.scheme import Formats, Scheme

__all__ = ["Checkpoint", "CheckpointMismatch", "Loader", "Progress", "packed_name", "qkv_rows"]

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


def qkv_rows(kv_heads: int, group: int, head_dim: int) -> Tensor:
    """`rows` of Loader.linear for a layer whose rows are, for each key-value head, the `group` query heads that share
    it, then its key, then its value: it makes of them all queries; all keys; all values."""
    published = torch.arange(kv_heads * (group + 2) * head_dim).view(kv_heads, group + 2, head_dim)
    return torch.cat([published[:, :group].flatten(), published[:, group].flatten(), published[:, group + 1].flatten()])


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
        self.adapters: Adapters | None = None  # where layers are to take adapters
        self.step_tokens = 2048  # the most that a step may have
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
        self,
        name: str,
        rows: int,
        width: int,
        *,
        head: str,
        tied: bool,
        bias: bool = False,
        unit_rows: bool = False,
        scale: float = 1.0,
    ) -> tuple[Embedding, Linear]:
        """The token embedding, times `scale`, and the projection to the vocabulary; one weight where they are tied.

        In a tied model the embedding wins over a `head` tensor that the file may carry. bias: of the head.
        unit_rows: an untied head whose rows are divided by their lengths (Baichuan 2).
        """
        if tied:
            self.ignore(re.escape(f"{head}.weight"))
            weight = self._weight((name,), (rows,), width, self.formats.head)
            return Embedding(self.ops, weight, scale), self._linear(weight, None, (rows,), Parallel.COLUMN)
        if self.formats.embedding is None:
            embed = self.embedding(name, rows, width)
        else:
            embed = Embedding(self.ops, self._weight((name,), (rows,), width, self.formats.embedding))
        embed.scale = scale
        root = self.at("")
        root.prefix = ""
        weight = root._weight((head,), (rows,), width, self.formats.head, unit_rows=unit_rows)
        biases = root.vector(f"{head}.bias", rows) if bias else None
        return embed, self._linear(weight, biases, (rows,), Parallel.COLUMN)

    def rms_norm(self, name: str, size: int, eps: float, *, offset: float = 0.0, scale: float = 1.0) -> RMSNorm:
        """Its weight is (offset + what is stored) * scale."""
        weight = (self.vector(f"{name}.weight", size) + offset) * scale
        return RMSNorm(self.ops, weight, eps, self.act_dtype)

    def layer_norm(
        self,
        name: str,
        size: int,
        eps: float = 1e-5,
        *,
        affine: bool = True,
        bias: bool = True,
        stream: bool = False,
        scale: float = 1.0,
    ) -> LayerNorm:
        """stream: what comes out is the residual stream itself, and so float32. scale: of what comes out."""
        weight = self.vector(f"{name}.weight", size) * scale if affine else None
        shift = self.vector(f"{name}.bias", size) * scale if affine and bias else None
        return LayerNorm(self.ops, weight, shift, eps, torch.float32 if stream else self.act_dtype)

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
        rows: Tensor | None = None,
        scheme: Scheme | None = None,
        adapted: bool = True,
    ) -> Linear:
        """One Linear of one published layer, or of several that share their input, stacked by rows.

        parts: where a published layer is itself a stack, its parts' sizes (see Linear). rows: row i of the Linear is
        row rows[i] of a single published layer (see `qkv_rows`). scheme: where it is not that of all linear layers.
        adapted: False where it is not run with the others, in the forward, and so takes no adapter.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        sizes = (out_features,) if isinstance(out_features, int) else tuple(out_features)
        weight = self._weight(
            names,
            sizes,
            in_features,
            scheme or self.formats.linear,
            gated=gated,
            transposed=transposed,
            rows=rows,
        )
        biases = [self.vector(f"{name}.bias", size) for name, size in zip(names, sizes, strict=True) if bias]
        stacked = torch.cat(biases) if biases else None
        if stacked is not None and rows is not None:
            stacked = stacked[rows]
        linear = self._linear(weight, stacked, parts or sizes, parallel, act)
        if self.adapters is None or not adapted:
            return linear
        return self.adapters.wrap(linear, [self.prefix + name for name in names], sizes, rows)

    def _linear(
        self,
        weight: LinearWeight,
        bias: Tensor | None,
        parts: tuple[int, ...],
        parallel: Parallel,
        act: Activation = Activation.NONE,
    ) -> Linear:
        return Linear(self.ops, weight, bias, parts=parts, parallel=parallel, act=act)

    def experts(self, names: Sequence[str], experts: int, size: int, in_features: int, *, gated: bool) -> LinearWeight:
        """The weights of `experts` layers as one, see Ops.moe_add_; names have {} where an expert's number stands.

        Each of the layers `names` has `size` rows; gated: they are the gate and what it gates.
        """
        multiple = 16 if gated else 32
        if size % multiple:
            raise UnsupportedModel("the rows of an expert's matrix", size, f"a multiple of {multiple}")
        each = tuple(name.format(e) for name in names for e in range(experts))
        kept = "+".join(name.format("*") for name in names) + ".weight"
        return self._weight(each, (size,) * len(each), in_features, self.formats.linear, gated=gated, keep_as=kept)

    # ---- what a layer is made of ------------------------------------------------------------------------------

    def vector(self, name: str, *shape: int) -> Tensor:
        """[elements] float32: a bias or a norm's weight."""
        value = self.tensor(name, *shape).to(self.ops.device, torch.float32, copy=True).flatten()
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
        rows: Tensor | None = None,
        unit_rows: bool = False,
        keep_as: str | None = None,
    ) -> LinearWeight:
        """The weights of published layers, stacked by rows and packed.

        rows: see `linear`. unit_rows: each row is divided by its length. keep_as: what a packed checkpoint calls it.
        """
        reader = _UnitRows(self) if unit_rows else self
        read = [
            scheme.read(reader, name, size, in_features, transposed=transposed)
            for name, size in zip(names, sizes, strict=True)
        ]
        if rows is not None:
            read = [take_rows(part, rows) for part in read]
        weight = scheme.pack(self.ops, read, gated=gated)
        for name in names:
            self._release(f"{self.prefix}{name}.weight")
        self._keep(keep_as or packed_name(names), weight)
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


class _UnitRows:
    """A scheme's view of the checkpoint in which each row has length 1; in floats, whatever the file holds."""

    def __init__(self, loader: Loader) -> None:
        self._loader, self.prefix = loader, loader.prefix

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        value = torch.nn.functional.normalize(self._loader.tensor(name, *shape, dtype=torch.float32))
        return value if dtype is None else value.to(dtype)

    def quantized(self, name: str, out_features: int, in_features: int) -> None:
        return None
