"""What a quantisation scheme is: how one linear layer's weight is read from a checkpoint and packed."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from octavo_engine.ops import LinearWeight, Ops, QuantizedWeight

__all__ = ["Formats", "NotQuantizable", "Reader", "Scheme", "take_rows"]


class NotQuantizable(Exception):
    """A tensor holds what the scheme's numbers can't: infinities, NaN, or more than float16 scales reach."""


class Reader(Protocol):
    """A checkpoint's tensors by published name (layers.loading.Loader): each read is accounted for.

    prefix: what stands before the names that are asked for.
    """

    prefix: str

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, its shape checked (no shape given: any), rounded to dtype."""
        ...

    def quantized(self, name: str, out_features: int, in_features: int) -> QuantizedWeight | None:
        """The tensor in the quantised form that the file holds it in; None where it holds floats."""
        ...


class Scheme(Protocol):
    """One weight format. A Linear's forward never sees it: `Ops.linear` dispatches on what `pack` returned."""

    name: str

    def read(self, reader: Reader, name: str, out_features: int, in_features: int, *, transposed: bool) -> Any:
        """The weight of the published layer `name`, in this scheme's own form, out of whichever tensors it has.

        transposed: a float weight is stored [in_features, out_features].
        """
        ...

    def pack(self, ops: Ops, parts: list[Any], *, gated: bool) -> LinearWeight:
        """Stack what `read` gave for layers that share their input, by output rows, and pack it for `ops`."""
        ...


def take_rows(part: Any, rows: Tensor) -> Any:
    """What `Scheme.read` gave, with its rows [N, K] in another order: row i is the old row rows[i]."""
    if not is_dataclass(part):
        return part[rows]
    assert not isinstance(part, type)
    # A float with its name, or codes with their scales and offsets: every tensor has a row an output.
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return replace(part, **{name: value[rows] for name, value in values.items() if hasattr(value, "shape")})


@dataclass(frozen=True)
class Formats:
    """Which scheme each kind of weight takes.

    head: of the projection to the vocabulary and of an embedding tied to it. embedding: of one of its own; None is a
    plain table of floats.
    """

    linear: Scheme
    head: Scheme
    embedding: Scheme | None = None
