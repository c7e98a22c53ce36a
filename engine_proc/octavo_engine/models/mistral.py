"""Mistral (arXiv 2310.06825): LLaMA with a sliding window in every layer.

The window counts the query itself. Configs without the key mean 4096; null (v0.2 and later) is full attention. In
Ministral some layers slide (layer_types). Mistral Small 3.1 and 3.2 hold an image model too: the text model's config is
nested, its tensors lie under `language_model.`, and the image model's are left unread.
"""

from __future__ import annotations

from typing import ClassVar

from octavo_engine.layers.attention import layer_windows
from octavo_engine.layers.config import ConfigReader
from octavo_engine.layers.loading import Loader
from octavo_engine.models.llama import Llama

__all__ = ["Mistral", "Mistral3"]


class Mistral(Llama):
    """MistralForCausalLM, MinistralForCausalLM."""

    architecture = "MistralForCausalLM"
    defaults: ClassVar = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "attention_bias": False,
        "sliding_window": 4096,
    }

    def read(self, config: ConfigReader, max_model_len: int | None) -> None:
        super().read(config, max_model_len)
        window = config.integer("sliding_window", default=0, minimum=0)
        self.windows = layer_windows(config, window, lambda i: bool(window))


class Mistral3(Mistral):
    """Mistral3ForConditionalGeneration, for text alone."""

    architecture = "Mistral3ForConditionalGeneration"
    head_name = "language_model.lm_head"

    def __init__(self, config: ConfigReader, loader: Loader, max_model_len: int | None = None) -> None:
        loader.ignore(r"(vision_tower|multi_modal_projector)\..*")
        super().__init__(ConfigReader(config.get("text_config")), loader.at("language_model."), max_model_len)
