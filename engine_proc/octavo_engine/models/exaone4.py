"""EXAONE 4 (arXiv 2507.11407): norms behind attention and feed-forward, as in OLMo 2, but of each head of q and k.

32B slides in all layers but every fourth, and those rotate nothing; 1.2B has neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from octavo_engine.layers.attention import QKVEdit, layer_windows
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.olmo2 import Olmo2

__all__ = ["Exaone4"]


class Exaone4(Olmo2):
    """Exaone4ForCausalLM."""

    architecture = "Exaone4ForCausalLM"
    defaults: ClassVar = {"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4}

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        window = config.integer("sliding_window", default=0, minimum=0)
        pattern = config.get("sliding_window_pattern", default=4)  # 32B spells it "LLLG"
        every = len(pattern) if isinstance(pattern, str) else pattern
        self.windows = layer_windows(config, window, lambda i: bool(window) and (i + 1) % every != 0)
        if window:
            self.ropes = [rope if slides else None for rope, slides in zip(self.ropes, self.windows, strict=True)]

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        return self.head_norms(loader)
