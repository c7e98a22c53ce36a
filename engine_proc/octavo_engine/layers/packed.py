"""Layers out of a packed checkpoint: nothing is converted, every tensor is used where it was read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from octavo_engine.layers.loading import CheckpointMismatch, Loader, packed_name
from octavo_engine.ops import Activations, LinearWeight, PackedLinear, QuantizedLinear
from octavo_engine.ops.host_layout import from_host, host_ops, to_host

if TYPE_CHECKING:
    from octavo_engine.ops import Ops
    from octavo_engine.quant.scheme import Formats, Scheme

__all__ = ["PackedLoader", "unpack_made"]


def unpack_made(
    ops: Ops, made: Mapping[str, LinearWeight | Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """What a Loader made for `ops`, as tensors by name and the forms of packed weights; `PackedLoader` takes both.

    They are on the host and in its layout, whatever the device.
    """
    tensors: dict[str, Tensor] = {}
    forms: dict[str, dict[str, Any]] = {}
    for name, value in made.items():
        if isinstance(value, Tensor):
            tensors[name] = value.cpu()
            continue
        value = to_host(ops, value)
        tensors[name] = value.data
        forms[name] = {"out_features": value.out_features, "in_features": value.in_features, "gated": value.gated}
        if isinstance(value, QuantizedLinear):
            forms[name] |= {"bits": value.bits, "group_size": value.group_size, "symmetric": value.symmetric}
    return tensors, forms


class PackedLoader(Loader):
    """A Loader of what an earlier Loader made.

    activations and threshold are not part of a packed weight: those of today apply.
    """

    def __init__(
        self,
        ops: Ops,
        tensors: Mapping[str, Tensor],
        forms: Mapping[str, Mapping[str, Any]],
        dtype: torch.dtype,
        formats: Formats,
        activations: Activations,
        threshold: float,
    ) -> None:
        super().__init__(ops, _Tensors(tensors), dtype, formats)
        self._forms, self._activations, self._threshold = forms, activations, threshold

    def vector(self, name: str, *shape: int) -> Tensor:
        return self.tensor(name, prod(shape)).to(self.ops.device)

    def _table(self, name: str, rows: int, width: int, skip: int) -> Tensor:
        return self.tensor(name, rows - skip, width).to(self.ops.device, self.dtype)

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
        name = keep_as or packed_name(names)
        data = self.tensor(name)
        form = self._forms.get(self.prefix + name)
        wanted = (sum(sizes), in_features, gated)
        found = None if form is None else (form["out_features"], form["in_features"], form["gated"])
        if form is None or found != wanted:
            raise CheckpointMismatch(
                f"packed weight {self.prefix}{name} has (rows, columns, gated) {found}, the config says {wanted}"
            )
        if "bits" not in form:
            return self._float(PackedLinear(data, *wanted))
        packed = QuantizedLinear(
            data,
            sum(sizes),
            in_features,
            form["bits"],
            form["group_size"],
            form["symmetric"],
            self._activations,
            gated,
            self._threshold,
        )
        return from_host(self.ops, packed)

    def _float(self, weight: PackedLinear) -> LinearWeight:
        if weight.data.dtype != self.dtype:
            host = host_ops(self.ops)
            weight = host.pack_linear(host.unpack_linear(weight).to(self.dtype), gated=weight.gated)
        return from_host(self.ops, weight)


class _Tensors:
    """Tensors in memory as a Checkpoint."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes
