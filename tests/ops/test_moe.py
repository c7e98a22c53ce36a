"""Mixtures of experts to the bit, and what they and the ops of single families refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Ops
from tests.ops.test_against_reference import experts_weight, randn


@pytest.mark.parametrize("scheme", ["float", "int4", "int8", "int4:float"])
def test_a_mixtures_rows_do_not_depend_on_their_neighbours(ops: Ops, scheme: str) -> None:
    """Law 6: which experts others chose decides how many rows a product has, and nothing else."""
    hidden, width, experts, top_k = 64, 32, 6, 3
    x, scores = randn(130, hidden).bfloat16(), randn(130, experts, seed=1)
    up = experts_weight(ops, scheme, torch.bfloat16, experts * 2 * width, hidden, 3, True)
    down = experts_weight(ops, scheme, torch.bfloat16, experts * hidden, width, 4, False)

    def added(rows: slice) -> Tensor:
        residual = torch.zeros(len(x[rows]), hidden)
        form = {"experts": experts, "top_k": top_k, "renormalise": True, "act": Activation.SILU}
        ops.moe_add_(residual, x[rows].contiguous(), scores[rows].contiguous(), up, down, **form)
        return residual

    whole = added(slice(0, 130))
    for begin, end in ((0, 1), (5, 6), (129, 130), (0, 7), (40, 73)):
        assert torch.equal(added(slice(begin, end)), whole[begin:end])


def refuses_mixtures(ops: Ops) -> None:
    up, down = ops.pack_linear(randn(4 * 64, 64), gated=True), ops.pack_linear(randn(4 * 64, 32))
    form = {"experts": 4, "renormalise": True, "act": Activation.SILU}
    with pytest.raises(ValueError, match="the best 5 of 4 experts"):
        ops.moe_add_(randn(2, 64), randn(2, 64), randn(2, 4), up, down, top_k=5, **form)
    with pytest.raises(ValueError, match="scores has shape"):
        ops.moe_add_(randn(2, 64), randn(2, 64), randn(2, 5), up, down, top_k=2, **form)


def test_what_does_not_fit_is_refused(best_ops: Ops) -> None:
    refuses_mixtures(best_ops)
    with pytest.raises(ValueError, match="columns 0 to 70 of 64 in groups of 7"):
        best_ops.head_norm_(randn(2, 64), randn(70), None, 1e-5, size=7)
    at = torch.tensor([0, 9], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"positions\[1\] is 9; the table has 9"):
        best_ops.scale_rows_(randn(2, 64), at, randn(9), width=64)
    with pytest.raises(ValueError, match="65 columns of x, which has 64"):
        best_ops.scale_rows_(randn(2, 64), at, randn(10), width=65)
    with pytest.raises(ValueError, match="cap is 0"):
        best_ops.softcap_(randn(2, 64), 0.0)
