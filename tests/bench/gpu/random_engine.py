"""An engine process whose weights are random numbers of the right shapes, made on its device: none is read from disk.

It takes what `python -m octavo_engine` takes; the model is a folder of tests.bench.models.config_folder.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

import octavo_engine.weights as weights
from octavo_engine.__main__ import main
from octavo_engine.weights import Source
from tests.bench.models import random_shapes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class RandomCheckpoint:
    """Tensors of the shapes of a model in tests.bench.models; norms are ones."""

    def __init__(self, name: str) -> None:
        self._shapes = random_shapes(name)
        self._generator = torch.Generator(DEVICE).manual_seed(0)

    def names(self) -> list[str]:
        return list(self._shapes)

    def nbytes(self, name: str) -> int:
        return 2 * torch.Size(self._shapes[name]).numel()

    def get(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16, device=DEVICE)
        out = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
        return out.normal_(0, 0.02, generator=self._generator)


def open_random(model: str | os.PathLike[str], revision: str | None = None, progress: Any = None) -> Source:
    path = Path(model)
    name = path.name.removesuffix("-config")
    return Source("folder", path, json.loads((path / "config.json").read_text()), RandomCheckpoint(name))


if __name__ == "__main__":
    weights.open_source = open_random
    status = main()
    logging.shutdown()
    os._exit(status)
