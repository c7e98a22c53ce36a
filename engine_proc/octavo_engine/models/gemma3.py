"""Gemma 3 (arXiv 2503.19786), the text model: Gemma 2 whose heads of q and k are normalised, by 1 + w, before they are
rotated, without the cap on scores, and with five sliding layers before each that sees everything.

Sliding layers rotate by theta 1e4, unscaled; the others by 1e6, from 4b on divided by 8. From 4b on the published
checkpoints hold an image model too: the text model's config is nested and its tensors lie under `language_model.`; the
image model's are left unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from octavo_engine.layers.attention import QKVEdit
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.layers.rope import Rope, params_of_kind
from octavo_engine.models.gemma2 import Gemma2

__all__ = ["Gemma3", "Gemma3Multimodal"]


class Gemma3(Gemma2):
    """Gemma3ForCausalLM."""

    architecture = "Gemma3ForCausalLM"
    defaults: ClassVar = {
        **Gemma2.defaults,
        "vocab_size": 262208,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window_pattern": 6,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        trained = config.integer("max_position_embeddings")

        def rope(kind: str, theta_key: str, theta: float) -> Rope:
            params = {"rope_theta": config.number(theta_key, default=theta), **params_of_kind(config, kind)}
            flat = {"rope_parameters": params, "max_position_embeddings": trained}
            made = Rope(ConfigReader(flat), self.heads.dim, max_model_len or trained)
            made.max_position = trained  # as scaled
            return made

        super().read(config.without("rope_parameters", "rope_scaling"), max_model_len or trained)
        full = rope("full_attention", "rope_theta", 1e6)
        local = rope("sliding_attention", "rope_local_base_freq", 1e4)
        self.ropes = [local if window else full for window in self.windows]

    def slides(self, config: ConfigReader, i: int) -> bool:
        pattern = config.integer("sliding_window_pattern", "_sliding_window_pattern")
        return (i + 1) % pattern != 0

    def edits(self, loader: Loader) -> Sequence[QKVEdit]:
        return self.head_norms(loader, offset=1.0)


class Gemma3Multimodal(Gemma3):
    """Gemma3ForConditionalGeneration, for text alone."""

    architecture = "Gemma3ForConditionalGeneration"
    head_name = "language_model.lm_head"

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        loader.ignore(r"(model\.)?(vision_tower|multi_modal_projector)\..*")
        super().__init__(ConfigReader(config.get("text_config")), loader.at("language_model."), max_model_len)
