"""transformers' linear layers on octavo's kernels, in any of its weight formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from octavo_engine.ops import PackedLinear
from octavo_engine.quant.float import FloatScheme

if TYPE_CHECKING:
    from octavo_engine.ops import LinearWeight, Ops
    from octavo_engine.quant.scheme import Formats, Scheme

__all__ = ["pack_linears"]

# Routers choose experts by small differences: they stay in floats.
_ROUTERS = ("gate", "router")


class KernelLinear(nn.Module):
    """y = x W^T + b of any leading shape, in x's type."""

    def __init__(self, ops: Ops, weight: LinearWeight, bias: Tensor | None, act_dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self._ops, self._packed, self._bias, self._act_dtype = ops, weight, bias, act_dtype

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(self._act_dtype).contiguous()
        shape = (*x.shape[:-1], self.out_features)
        if not len(rows):
            return x.new_empty(shape)
        return self._ops.linear(rows, self._packed, self._bias).view(shape).to(x.dtype)

    @property
    def bias(self) -> Tensor | None:
        return self._bias

    @property
    def weight(self) -> Tensor:
        """[out, in], for code that reads it instead of calling the layer: unpacked anew each time."""
        if isinstance(self._packed, PackedLinear):
            return self._ops.unpack_linear(self._packed)
        raise AttributeError("a quantised weight can only be multiplied with")


class _Reader:
    """One nn.Linear as a scheme's checkpoint."""

    def __init__(self, name: str, module: nn.Linear) -> None:
        self.prefix, self._module = name.rpartition(".")[0] + "." if "." in name else "", module

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        value = self._module.weight.detach()
        return value if dtype is None else value.to(dtype)

    def quantized(self, name: str, out_features: int, in_features: int) -> None:
        return None


def pack_linears(network: nn.Module, head: nn.Module, ops: Ops, formats: Formats, dtype: torch.dtype) -> int:
    """Replace each nn.Linear of `network`; how many there were. head: the projection to the vocabulary."""
    act_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    floats = FloatScheme(dtype)
    found = [(name, module) for name, module in network.named_modules() if type(module) is nn.Linear]
    for name, module in found:
        scheme: Scheme = formats.head if module is head else formats.linear
        if name.rpartition(".")[2] in _ROUTERS:
            scheme = floats
        own = name.rpartition(".")[2]
        part = scheme.read(_Reader(name, module), own, module.out_features, module.in_features, transposed=False)
        weight = scheme.pack(ops, [part], gated=False)
        bias = None if module.bias is None else module.bias.detach().to(ops.device, torch.float32)
        network.set_submodule(name, KernelLinear(ops, weight, bias, act_dtype))
    return len(found)
