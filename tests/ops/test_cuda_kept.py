"""A forward for the rows that are read (ops.cuda_kept), of whole tiny models on emulated kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_engine.execution.kv_cache import KVCache, cache_layout
from octavo_engine.layers.batch import BATCH_SPECS, KEPT_ROWS, Batch
from octavo_engine.models import load_model
from octavo_engine.ops.cuda import CudaOps
from octavo_engine.weights.open import open_source
from tests.models import family_oracles
from tests.support.cuda import emulated_ops

LENGTHS = (20, 11)  # tokens of two prompts
TOKENS = sum(LENGTHS)


class Model:
    """A family's tiny checkpoint and a cache."""

    def __init__(self, name: str, folder: Path) -> None:
        self.ops: CudaOps = emulated_ops(check=False, invariant=True)
        self._model = load_model(open_source(family_oracles.write(name, folder)), self.ops, torch.float32)
        for table in self._model.tables:
            table.reach(max(LENGTHS))
        self.cache = KVCache(self.ops, cache_layout(self._model.config, 4, 16, torch.float32))

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._model.forward(Batch.of(tensors, self.cache.layers))


def step() -> list[Tensor]:
    """Both prompts whole: pages 0, 1 and 2."""

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    ids = torch.randint(3, 90, (TOKENS,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    positions = ints(*range(LENGTHS[0]), *range(LENGTHS[1]))
    slots = ints(*range(LENGTHS[0]), *range(32, 32 + LENGTHS[1]))
    return [ids, positions, slots, ints(0, LENGTHS[0], TOKENS), ints(*LENGTHS), torch.tensor([[0, 1], [2, 2]]).int()]


def kept_inputs(rows: list[int]) -> list[Tensor]:
    """Those of BATCH_SPECS behind the rows: starts of one, lengths, page table."""
    of = torch.tensor([int(row >= LENGTHS[0]) for row in rows], dtype=torch.int64)
    ends = [row + 1 - (row >= LENGTHS[0]) * LENGTHS[0] for row in rows]
    starts = torch.arange(len(rows) + 1, dtype=torch.int32)
    return [torch.tensor(rows, dtype=torch.int32), starts, torch.tensor(ends, dtype=torch.int32), step()[5][of]]


def watched(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every linear from now on."""
    seen: list[int] = []

    def linear(self: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.append(x.shape[0])
        return original(self, x, *arguments, **options)

    original: Callable[..., Tensor] = CudaOps.linear
    monkeypatch.setattr(CudaOps, "linear", linear)
    return seen


@pytest.mark.parametrize("name", ["qwen2-moe", "gemma3", "phi", "opt-350m"])
def test_kept_rows_have_the_bits_of_all_rows(name: str, tmp_path: Path) -> None:
    model = Model(name, tmp_path / "m")
    whole = model.forward(*step())
    written = model.cache.keys.clone(), model.cache.values.clone()
    kept = model.ops.record(model.forward, BATCH_SPECS, KEPT_ROWS)
    for rows in ([19, 30], [30], [], [19, 19, 4, 30], list(range(TOKENS))):  # the first run learns
        model.cache.keys.zero_(), model.cache.values.zero_()
        got = kept(*step(), *kept_inputs(rows))
        assert torch.equal(got, whole[rows])
        assert torch.equal(model.cache.keys, written[0])
        assert torch.equal(model.cache.values, written[1])


def test_the_last_layer_is_left_out_for_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Model("qwen3", tmp_path / "m")
    kept = model.ops.record(model.forward, BATCH_SPECS, KEPT_ROWS)
    seen = watched(model, monkeypatch)
    kept(*step(), *kept_inputs([19, 30]))
    assert seen == [TOKENS] * 4  # qkv and gate, up of two layers: the first run learns
    seen.clear()
    kept(*step(), *kept_inputs([19, 30]))
    assert seen == [TOKENS] * 3 + [2]
    seen.clear()
    kept(*step(), *kept_inputs([]))
    assert seen == [TOKENS] * 3


def test_a_failure_leaves_the_ops_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Model("qwen3", tmp_path / "m")
    before, whole = vars(model.ops).copy(), model.forward(*step())
    kept = model.ops.record(model.forward, BATCH_SPECS, KEPT_ROWS)
    short = step()
    short[2] = short[2][:-1]
    with pytest.raises(ValueError, match="slots"):
        kept(*short, *kept_inputs([30]))
    assert vars(model.ops).keys() == before.keys()
    assert torch.equal(kept(*step(), *kept_inputs([30])), whole[[30]])
