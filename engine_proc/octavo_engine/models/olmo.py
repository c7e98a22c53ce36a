"""OLMo (arXiv 2402.00838), the first generation: LLaMA with LayerNorms that have neither weight nor bias; 7B Twin and
later clip q, k and v."""

from __future__ import annotations

from collections.abc import Sequence

from octavo_engine.layers.attention import Clip, QKVEdit
from octavo_engine.layers.blocks import Norm
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.llama import Llama

__all__ = ["Olmo"]


class Olmo(Llama):
    """OlmoForCausalLM."""

    architecture = "OlmoForCausalLM"

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        self.clip = config.number("clip_qkv", default=0.0)

    def new_norm(self, loader: Loader, name: str, scale: float = 1.0) -> Norm:
        return loader.layer_norm(name, self.hidden, 1e-5, affine=False)

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        return (Clip(self.ops, self.clip),) if self.clip else ()
