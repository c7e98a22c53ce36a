"""What a quantisation scheme is: how one linear layer's weight is read from a checkpoint and packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from octavo_engine.ops import Ops, PackedLinear

__all__ = ["ReadTensor", "Scheme"]

ReadTensor = Callable[..., "Tensor"]
"""read(name, *shape, dtype=None): one published tensor, its shape checked (no shape given: any), rounded to dtype."""


class Scheme(Protocol):
    """One weight format. A Linear's forward never sees it: `Ops.linear` dispatches on what `pack` returned."""

    name: str

    def read(self, read: ReadTensor, name: str, out_features: int, in_features: int, *, transposed: bool) -> Any:
        """The weight of the published layer `name`, in this scheme's own form, out of whichever tensors it has.

        transposed: a float weight is stored [in_features, out_features].
        """
        ...

    def pack(self, ops: Ops, parts: list[Any], *, gated: bool) -> PackedLinear:
        """Stack what `read` gave for layers that share their input, by output rows, and pack it for `ops`."""
        ...
