"""Models out of packed checkpoints: the quantised cache's files, and the folders that `octavo quantize` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.options import Quantization
from octavo_engine.layers.config import UnsupportedModel
from octavo_engine.layers.packed import PackedLoader, unpack_made
from octavo_engine.ops.host_layout import host_ops
from octavo_engine.quant.formats import activations_of, choose_formats, resolve, storage
from octavo_engine.weights.packed_file import PackedFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from octavo_engine.layers.loading import Progress
    from octavo_engine.ops import LinearWeight, Ops

__all__ = ["packed_contents", "packed_loader", "quantization_of"]


def quantization_of(checkpoint: object, asked: str | Quantization | None) -> Quantization | None:
    """What a checkpoint runs with when `asked` (EngineOptions.quantization) is asked for; None: as stored.

    A packed one has its own; asking for the same storage with other activations is granted. Raises UnsupportedModel for
    another storage: its floats are gone.
    """
    wanted = resolve(asked)
    if not isinstance(checkpoint, PackedFile):
        return wanted
    own = msgspec.convert(checkpoint.settings["quantization"], Quantization)
    if wanted is None:
        return own
    if wanted.scheme == "none" or storage(wanted) != storage(own):
        raise UnsupportedModel(
            "quantization",
            wanted.describe(),
            f"{own.describe()}, which {checkpoint.path} holds: leave the option out, or load the original model",
        )
    return wanted


def packed_loader(
    file: PackedFile, ops: Ops, dtype: torch.dtype, quantization: Quantization, progress: Progress | None
) -> PackedLoader:
    """The whole file, read into the weights' memory where `ops` take them as they are. Raises SourceError."""
    tensors = file.read(host_ops(ops).weight_memory, threads=getattr(ops, "num_threads", 1), progress=progress)
    return PackedLoader(
        ops,
        tensors,
        file.settings["weights"],
        dtype,
        choose_formats(quantization, dtype),
        activations_of(quantization),
        quantization.threshold,
    )


def packed_contents(
    ops: Ops, made: dict[str, LinearWeight | Tensor], quantization: Quantization, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings for `write_packed`, out of what a Loader made."""
    tensors, forms = unpack_made(ops, made)
    return tensors, {
        "quantization": msgspec.structs.asdict(quantization),  # with its defaults, which may change
        "dtype": str(dtype).removeprefix("torch."),
        "weights": forms,
    }
