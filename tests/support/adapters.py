"""LoRA adapters in the files that peft writes, with random weights, and the weights they amount to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["merged", "write_adapter"]


def write_adapter(
    folder: Path,
    layers: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    size: float = 0.1,
    **config: Any,
) -> dict[str, Tensor]:
    """layers: module -> (outputs, inputs). Returns what the adapter adds to each module's weight [N, K]."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    tensors, added = {}, {}
    for module, (outputs, inputs) in layers.items():
        down = torch.randn(rank, inputs, generator=generator) * size
        up = torch.randn(outputs, rank, generator=generator) * size
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        added[module] = scale * up @ down
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "use_dora": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return added


def merged(network: Any, added: Mapping[str, Tensor]) -> Any:
    """A copy of a transformers model with the adapter in its weights."""
    import copy

    network = copy.deepcopy(network)
    with torch.no_grad():
        for module, delta in added.items():
            layer = network.get_submodule(module)
            # GPT-2's Conv1D holds [inputs, outputs].
            layer.weight += delta.T if type(layer).__name__ == "Conv1D" else delta
    return network
