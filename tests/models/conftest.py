"""Fixtures: the tiny checkpoints on disk, and each implementation of the ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from octavo_engine.ops import Ops, load_ops
from tests.models.family_oracles import write
from tests.models.mutations import deviation


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Tiny matrices: torch's threads would only wait for each other, for seconds where other processes run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return load_ops(request.param)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family of the table, written once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return of


@pytest.fixture(scope="session")
def published(checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same, for mutations: without one it answers as transformers does."""
    answers_well: set[str] = set()

    def of(name: str) -> Path:
        if name not in answers_well:
            assert deviation(name, checkpoint(name)) < 1e-4
            answers_well.add(name)
        return checkpoint(name)

    return of
