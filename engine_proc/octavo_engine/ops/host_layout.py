"""Packed weights between a device's layout and the CPU's, in which files hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo_engine.ops import LinearWeight, PackedLinear, QuantizedWeight, load_ops

if TYPE_CHECKING:
    from octavo_engine.ops import Ops

__all__ = ["from_host", "host_ops", "to_host"]


def host_ops(ops: Ops) -> Ops:
    """Ops that read weights in the CPU's layout: `ops` where they do."""
    return ops if ops.name in ("cpu", "reference") else load_ops("cpu")


def to_host(ops: Ops, weight: LinearWeight) -> LinearWeight:
    """A weight that `ops` packed, as the CPU packs it."""
    return _moved(ops, host_ops(ops), weight)


def from_host(ops: Ops, weight: LinearWeight) -> LinearWeight:
    """A weight in the CPU's layout, as `ops` packs it."""
    return _moved(host_ops(ops), ops, weight)


def _moved(source: Ops, target: Ops, weight: LinearWeight) -> LinearWeight:
    if source is target:
        return weight
    if isinstance(weight, PackedLinear):
        return target.pack_linear(source.unpack_linear(weight).cpu(), gated=weight.gated)
    plain = source.unpack_quantized(weight)
    offsets = None if plain.offsets is None else plain.offsets.cpu()
    on_host = QuantizedWeight(plain.codes.cpu(), plain.scales.cpu(), offsets, plain.bits, plain.group_size)
    return target.pack_quantized(on_host, weight.activations, gated=weight.gated, threshold=weight.threshold)
