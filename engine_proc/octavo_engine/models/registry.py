"""Architectures by the name that a config gives, and the one way to load a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.loading import Checkpoint, CheckpointMismatch, Loader, Progress
from octavo_engine.models.base import CausalLM, ModelBuilder
from octavo_engine.models.gpt2 import GPT2
from octavo_engine.models.llama import Llama
from octavo_engine.models.mistral import Mistral
from octavo_engine.models.opt import OPT
from octavo_engine.models.packed import packed_contents, packed_loader, quantization_of
from octavo_engine.quant.formats import choose_formats, storage
from octavo_engine.weights.packed_file import PackedFile
from octavo_engine.weights.source import Source, SourceError

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.options import Quantization
    from octavo_engine.ops import LinearWeight, Ops
    from octavo_engine.weights.quantized_cache import QuantizedCache

__all__ = ["ARCHITECTURES", "load_model"]

ARCHITECTURES: dict[str, ModelBuilder] = {
    "GPT2LMHeadModel": GPT2,
    "LLaMAForCausalLM": Llama,  # as the first conversions spelled it
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "OPTForCausalLM": OPT,
}

_BY_MODEL_TYPE = {"gpt2": GPT2, "llama": Llama, "mistral": Mistral, "opt": OPT}


class ModelSource(Protocol):
    """What load_model reads of octavo_engine.weights.Source."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


def find_model(config: dict[str, Any]) -> ModelBuilder:
    """By `architectures`, or by `model_type` where a config has none. Raises UnsupportedModel."""
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and config.get("model_type") in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[config["model_type"]]
    raise UnsupportedModel("architectures", names or config.get("model_type"), ", ".join(ARCHITECTURES))


def load_model(
    source: ModelSource,
    ops: Ops,
    dtype: torch.dtype,
    progress: Progress | None = None,
    *,
    quantization: str | Quantization | None = None,
    max_model_len: int | None = None,
    cache: QuantizedCache | None = None,
    made: dict[str, LinearWeight | Tensor] | None = None,
) -> CausalLM:
    """Read, pack and check the whole checkpoint, one tensor at a time.

    dtype: float32, bfloat16 or float16, of the weights that stay in floats. quantization: as EngineOptions has it: of
    linear layers, and by its flags of the head and the token embedding; norms, biases and position embeddings stay in
    floats. What a file holds in 4 or 8 bits is turned to floats before another scheme rounds it. max_model_len: where
    the engine serves other lengths than the checkpoint's own max_position; it sizes the rotation table and freezes the
    scalings that depend on a length. cache: where what is quantised here is kept, and looked for first. made: takes
    what layers hold, by name.
    Raises UnsupportedModel, CheckpointMismatch, NotQuantizable, SourceError.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedModel("dtype", dtype, "float32, bfloat16, float16")
    config = ConfigReader(source.config)
    if config.get("quantization_config", default=None) is not None:
        raise UnsupportedModel("quantization_config", config.get("quantization_config"), "float checkpoints")
    builder = find_model(source.config)
    scheme = quantization_of(source.checkpoint, quantization)

    def build(loader: Loader) -> CausalLM:
        with _one_torch_thread():
            model = builder(config, loader, max_model_len)
        loader.finish()
        return model

    if isinstance(source.checkpoint, PackedFile):
        assert scheme is not None
        return build(packed_loader(source.checkpoint, ops, dtype, scheme, progress))
    entry = None
    if cache is not None and isinstance(source, Source) and scheme is not None and scheme.scheme != "none":
        entry = cache.entry(source, storage(scheme), str(dtype))
    file = entry.open() if entry is not None else None
    if entry is not None and file is not None and scheme is not None:
        try:
            return build(packed_loader(file, ops, dtype, scheme, progress))
        except (SourceError, CheckpointMismatch) as error:
            entry.damaged(error)
    made = {} if made is None else made
    formats = choose_formats(scheme, dtype, stored=hasattr(source.checkpoint, "get_quantized"))
    model = build(Loader(ops, source.checkpoint, dtype, formats, progress, made=made))
    if entry is not None and scheme is not None:
        entry.write(*packed_contents(ops, made, scheme, dtype), progress)
    return model


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Conversions of one tensor are short: with another process on the cores, torch's two threads took 0.8 to 3.5 s
    to wait for each other over SmolLM2 where one takes 0.3."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
