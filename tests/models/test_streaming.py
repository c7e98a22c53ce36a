"""Weights go to a device one published tensor at a time, before anything is made of them on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo_engine.quant.float import FloatScheme


class Elsewhere:
    """Ops on a device that stores nothing."""

    device = torch.device("meta")

    def pack_linear(self, weight: torch.Tensor, *, gated: bool = False) -> torch.Tensor:
        return weight


@pytest.mark.parametrize("shapes", [[(4, 6)], [(4, 6), (2, 6), (2, 6)]])
def test_layers_are_stacked_on_the_device(shapes: list[tuple[int, int]]) -> None:
    ops: Any = Elsewhere()
    parts = [torch.ones(shape).t().contiguous().t() for shape in shapes]
    packed: Any = FloatScheme(torch.float32).pack(ops, parts, gated=False)
    assert packed.device.type == "meta"
    assert packed.shape == (sum(rows for rows, _ in shapes), 6)
    assert packed.is_contiguous()
