"""Mixtures of experts on CUDA held to the reference: emulated, and marked gpu on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.ops import Activation, Activations, LinearWeight, Ops
from tests.ops.quantized import Kind, random_weight
from tests.ops.test_cuda_dense import TYPES, randn
from tests.ops.test_moe import refuses_mixtures
from tests.support.cuda import emulated_ops, emulated_order

F32, BF16, F16 = TYPES
HIDDEN = 64


@dataclass(frozen=True)
class Mixture:
    """experts of `width`, of which a token gets top_k; quantised where there is a kind."""

    experts: int
    top_k: int
    width: int
    dtype: torch.dtype
    kind: Kind | None = None
    activations: Activations = Activations.FLOAT
    act: Activation = Activation.SILU

    def weight(self, ops: Any, n: int, k: int, *, seed: int, gated: bool) -> LinearWeight:
        if self.kind is None:
            return ops.pack_linear((randn(n, k, seed=seed) * k**-0.5).to(self.dtype), gated=gated)
        return ops.pack_quantized(random_weight(self.kind, n, k, seed), self.activations, gated=gated)

    def add(self, ops: Any, residual: Tensor, x: Tensor, scores: Tensor, *, renormalise: bool = True) -> Tensor:
        up = self.weight(ops, self.experts * 2 * self.width, HIDDEN, seed=3, gated=True)
        down = self.weight(ops, self.experts * HIDDEN, self.width, seed=4, gated=False)
        form = {"experts": self.experts, "top_k": self.top_k, "renormalise": renormalise, "act": self.act}
        ops.moe_add_(residual, x, scores, up, down, **form)
        return residual

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        scores = randn(rows, self.experts, seed=1) * 2
        scores[0, : min(self.experts, 3)] = scores[0].max() + 1  # equals go by number
        return randn(rows, HIDDEN, seed=2), randn(rows, HIDDEN).to(self.dtype), scores


TOLERANCE = {F32: 5e-5, BF16: 1e-2, F16: 2e-3}
INT4, INT8 = Kind(4, 32, False), Kind(8, 0, True)
SHAPES = [(1, 4, 2, 32), (7, 1, 1, 16), (33, 9, 4, 48), (5, 40, 8, 32)]
KINDS = [INT4, Kind(4, 128, True), Kind(4, 0, False), Kind(8, 64, False), INT8]


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_experts(
    cuda_ops: Any, reference: Ops, shape: tuple[int, ...], dtype: torch.dtype, renormalise: bool
) -> None:
    rows, *form = shape
    mixture = Mixture(*form, dtype)
    residual, x, scores = mixture.inputs(rows)
    got = mixture.add(cuda_ops, residual.clone(), x, scores, renormalise=renormalise)
    wanted = mixture.add(reference, residual.clone(), x, scores, renormalise=renormalise)
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_quantised_experts(cuda_ops: Any, reference: Ops, kind: Kind, dtype: torch.dtype) -> None:
    for rows, *form in SHAPES[:3]:
        mixture = Mixture(*form, dtype, kind)
        residual, x, scores = mixture.inputs(rows)
        got = mixture.add(cuda_ops, residual.clone(), x, scores)
        wanted = mixture.add(reference, residual.clone(), x.float() if dtype == F16 else x, scores)
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("kind", "activations"),
    [(INT4, Activations.INT8), (INT8, Activations.INT8), (INT8, Activations.LLM_INT8)],
    ids=["w4a8", "w8a8", "llm.int8"],
)
def test_int8_activations(cuda_ops: Any, reference: Ops, kind: Kind, activations: Activations) -> None:
    """A last bit of an activation can move its code by one, 1/127 of the largest."""
    mixture = Mixture(9, 4, 32, F32, kind, activations)
    residual, x, scores = mixture.inputs(33)
    x[3, 5], x[20, 40] = 9.0, -7.0  # beyond LLM_INT8's threshold
    got, wanted = (mixture.add(ops, residual.clone(), x, scores) for ops in (cuda_ops, reference))
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("act", list(Activation))
def test_every_activation(cuda_ops: Any, reference: Ops, act: Activation) -> None:
    mixture = Mixture(4, 2, 16, BF16, act=act)
    residual, x, scores = mixture.inputs(3)
    got, wanted = (mixture.add(ops, residual.clone(), x, scores) for ops in (cuda_ops, reference))
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)


LAW6 = {
    "bf16": Mixture(6, 3, 32, BF16),
    "f16": Mixture(6, 3, 32, F16),
    "f32": Mixture(6, 3, 32, F32),
    "w4a16": Mixture(6, 3, 32, BF16, INT4),
    "w8a16": Mixture(6, 3, 32, BF16, INT8),
    "w4-f32": Mixture(6, 3, 32, F32, INT4),
    "w4a8": Mixture(6, 3, 32, BF16, INT4, Activations.INT8),
    "llm.int8": Mixture(6, 3, 32, BF16, INT8, Activations.LLM_INT8),
}


@pytest.mark.parametrize("name", LAW6)
def test_a_token_does_not_know_its_neighbours(name: str) -> None:
    """Law 6: which experts others chose decides how many rows a product has, and its tile, and nothing else."""
    ops, mixture = emulated_ops(check=False), LAW6[name]
    _, x, scores = mixture.inputs(300)  # 150 an expert: the largest tiles; then those of 64, 32 and 8 rows
    whole = mixture.add(ops, torch.zeros(300, HIDDEN), x, scores)
    for begin, end in ((0, 1), (5, 6), (299, 300), (0, 7), (40, 80), (100, 250)):
        part = mixture.add(ops, torch.zeros(end - begin, HIDDEN), x[begin:end].contiguous(), scores[begin:end])
        assert torch.equal(part, whole[begin:end])


@pytest.mark.parametrize("order", ["descending", "random"])
@pytest.mark.parametrize("name", ["bf16", "w4a16", "w4a8"])
def test_any_order_of_threads_and_blocks_gives_the_same_bits(name: str, order: str) -> None:
    ops, mixture = emulated_ops(), LAW6[name]
    residual, x, scores = mixture.inputs(9)
    wanted = mixture.add(ops, residual.clone(), x, scores)
    with emulated_order(order):
        assert torch.equal(mixture.add(ops, residual.clone(), x, scores), wanted)


def test_long_prompts_go_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, mixture = emulated_ops(check=False), LAW6["w4a8"]
    residual, x, scores = mixture.inputs(40)
    wanted = mixture.add(ops, residual.clone(), x, scores)
    monkeypatch.setattr("octavo_engine.ops.cuda_moe._PLACES", 48)  # 16 tokens
    assert torch.equal(mixture.add(ops, residual.clone(), x, scores), wanted)


def test_scores_that_are_no_numbers_do_no_harm(cuda_ops: Any) -> None:
    """Their token's row is NaN; the experts chosen exist and other rows are as they were."""
    mixture = LAW6["bf16"]
    residual, x, scores = mixture.inputs(4)
    wanted = mixture.add(cuda_ops, residual.clone(), x, scores)
    scores[1] = float("nan")
    scores[2, 2:] = float("-inf")
    got = mixture.add(cuda_ops, residual.clone(), x, scores)
    assert got[1].isnan().all()
    assert got[2].isfinite().all()
    assert torch.equal(got[[0, 3]], wanted[[0, 3]])


def test_wrong_mixtures_are_refused(cuda_ops: Any) -> None:
    refuses_mixtures(cuda_ops)
    up, down = cuda_ops.pack_linear(randn(4 * 64, 64), gated=True), cuda_ops.pack_linear(randn(4 * 64, 32))
    form = {"experts": 4, "renormalise": True, "act": Activation.SILU}
    with pytest.raises(TypeError, match="x is bfloat16; up is float32"):
        cuda_ops.moe_add_(randn(2, 64), randn(2, 64).bfloat16(), randn(2, 4), up, down, top_k=2, **form)
