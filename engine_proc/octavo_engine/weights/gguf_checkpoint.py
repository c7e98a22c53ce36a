"""GGUF files seen under the names, in the row order and with the values of the published checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from octavo_engine.ops import QuantizedWeight
from octavo_engine.weights.gguf_file import GGUFFile, TensorInfo
from octavo_engine.weights.gguf_types import GGML_TYPES, GGMLType, type_name
from octavo_engine.weights.source import SourceError

__all__ = ["GGUFCheckpoint", "Keys", "Layout", "RowOrder", "as_stored", "common_config", "paired_rows"]

_PIECE = 1 << 19  # weights, 2 MiB of float32


class Keys:
    """A file's metadata under its architecture's prefix: `required("block_count")` reads qwen2.block_count."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.meta = file, file.metadata
        self.architecture = file.metadata.get("general.architecture")

    def get(self, name: str, default: Any = None) -> Any:
        return self.meta.get(f"{self.architecture}.{name}", default)

    def required(self, name: str) -> Any:
        """Raises SourceError where the key is absent, or a list of different numbers, one a layer."""
        value = self.get(name)
        if value is None:
            raise SourceError(f"{self.file.path}: the metadata lacks {self.architecture}.{name}")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise SourceError(
                    f"{self.file.path}: {self.architecture}.{name} differs from layer to layer: {value}; one is read"
                )
            return value[0]
        return value

    def floats(self, tensor: str) -> list[float] | None:
        """The values of a small F32 tensor that is part of the config; None where the file has none."""
        info, path = self.file.tensors.get(tensor), self.file.path
        if info is None:
            return None
        if GGML_TYPES.get(info.kind) is not GGML_TYPES[0]:
            raise SourceError(f"{path}: {tensor} has ggml type {info.kind}; F32 (0) is read")
        if info.offset + 4 * info.shape[0] > len(self.file.data):
            raise SourceError(f"{path}: {tensor} {info.shape} passes the file's end")
        raw = torch.frombuffer(self.file.data, dtype=torch.float32, offset=info.offset, count=info.shape[0])
        values: list[float] = raw.tolist()
        return values

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors


RowOrder = Callable[[str, int], "Tensor | None"]
"""A tensor's name without its layer, like "attn_q.weight", and its number of rows -> for each published row the file's,
or None where they are the same."""


def as_stored(name: str, rows: int) -> None:
    """A RowOrder."""
    return None


def paired_rows(heads: Mapping[str, int]) -> RowOrder:
    """For names with a number of heads: the converter wrote the rows of a head in pairs (i, i + D/2), so that llama.cpp
    may rotate neighbours."""

    def rows(name: str, count: int) -> Tensor | None:
        number = heads.get(name.split(".")[0])
        if number is None:
            return None
        return torch.arange(count).view(number, -1, 2).transpose(1, 2).flatten()

    return rows


@dataclass(frozen=True)
class Layout:
    """How an architecture's file maps to the published checkpoint.

    config: config.json's keys. names: ggml's name of a tensor, without blk.N and .weight, -> the published one; where
    that has {}, the tensor is a stack whose e-th part goes by the number e. layers: what stands before a layer's
    number. rows: see RowOrder. offset: what the converter added to the weights of norms. ignored: tensors that are
    part of the config.
    """

    config: dict[str, Any]
    names: Mapping[str, str]
    layers: str = "model.layers."
    rows: RowOrder = as_stored
    offset: float = 0.0
    ignored: frozenset[str] = frozenset()


class GGUFCheckpoint:
    """Tensors one at a time: float32 out of quantised types, or their codes and scales; as stored otherwise.

    Rows are put in the published order here, as raw rows, before anything is made of them.
    """

    def __init__(self, file: GGUFFile, layout: Layout) -> None:
        self._file, self._layout = file, layout
        self._infos: dict[str, TensorInfo] = {}
        for name, info in file.tensors.items():
            if info.kind not in GGML_TYPES:
                known = ", ".join(kind.name for kind in GGML_TYPES.values())
                raise SourceError(
                    f"{file.path}: tensor {name} has ggml type {info.kind} ({type_name(info.kind)}); read are {known}"
                )
            kind = GGML_TYPES[info.kind]
            if info.shape[-1] % kind.block or info.offset + self._size(info) > len(file.data):
                raise SourceError(f"{file.path}: tensor {name} {info.shape} of {kind.name} passes the file's end")
            if name not in layout.ignored:
                self._infos.update(self._published(info))

    def _published(self, info: TensorInfo) -> dict[str, TensorInfo]:
        """The published tensors that one of the file holds."""
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+?)(?:\.(\d+))?\.(weight|bias)", info.name)
        # Files from before experts were stacked number them behind the name.
        stem = "" if match is None else match[2] if match[3] is None else f"{match[2]}_exps"
        if match is None or stem not in self._layout.names:
            return {info.name: info}  # The loader will name it as not used.
        layer = "" if match[1] is None else f"{self._layout.layers}{match[1]}."
        name = f"{layer}{self._layout.names[stem]}.{match[4]}"
        if match[3] is not None:
            return {name.format(match[3]): info}
        if stem == "ffn_gate_inp_shexp" and len(info.shape) == 1:  # a matrix of one row
            info = replace(info, shape=(1, *info.shape))
        if "{}" not in self._layout.names[stem]:
            return {name: info}
        part = self._size(info) // info.shape[0]
        return {
            name.format(e): TensorInfo(info.name, info.shape[1:], info.kind, info.offset + e * part)
            for e in range(info.shape[0])
        }

    def names(self) -> Iterable[str]:
        return self._infos.keys()

    def nbytes(self, name: str) -> int:
        return self._size(self._infos[name])

    def get(self, name: str) -> Tensor:
        rows, kind = self._rows(name)
        value = kind.dequantize(rows.reshape(-1, kind.size)).view(self._infos[name].shape)
        return value - self._layout.offset if self._layout.offset and name.endswith("norm.weight") else value

    def get_as(self, name: str, dtype: torch.dtype) -> Tensor:
        """`get(name).to(dtype)` by pieces that stay in the cache: a third faster, and no float32 copy of the whole."""
        if len(self._infos[name].shape) == 1:
            return self.get(name).to(dtype)
        rows, kind = self._rows(name)
        blocks = rows.reshape(-1, kind.size)
        out = torch.empty(len(blocks), kind.block, dtype=dtype)
        for piece in _pieces(len(blocks), kind):
            out[piece] = kind.dequantize(blocks[piece])
        return out.view(self._infos[name].shape)

    def get_quantized(self, name: str) -> QuantizedWeight | None:
        """Q8_0, Q4_0 and Q4_1 as they are, nothing rounded: groups of 32 with float16 scales (and offsets); else None.

        Q4_0's and Q8_0's codes are in excess of 8 and 128 and have no offset.
        """
        info = self._infos[name]
        codes = GGML_TYPES[info.kind].codes
        if codes is None or len(info.shape) != 2:
            return None
        rows, kind = self._rows(name)
        blocks = rows.reshape(-1, kind.size)
        out = torch.empty(len(blocks), kind.block, dtype=torch.uint8)
        for piece in _pieces(len(blocks), kind):
            codes.unpack(blocks[piece], out[piece])

        def halves(at: int) -> Tensor:
            return blocks[:, at : at + 2].contiguous().view(torch.float16).view(info.shape[0], -1)

        return QuantizedWeight(
            out.view(info.shape), halves(0), halves(2) if codes.offset else None, codes.bits, kind.block
        )

    def release(self, name: str) -> None:
        """Give the pages of a tensor that was read back to the system."""
        info = self._infos[name]
        self._file.release(info.offset, self._size(info))

    def _rows(self, name: str) -> tuple[Tensor, GGMLType]:
        """[rows, bytes a row] uint8 in published order."""
        info = self._infos[name]
        order = self._layout.rows(re.sub(r"^blk\.\d+\.", "", info.name), info.shape[0])
        rows = self._raw(info)
        return rows if order is None else rows[order], GGML_TYPES[info.kind]

    def _raw(self, info: TensorInfo) -> Tensor:
        """[rows, bytes a row] uint8, sharing the file's memory."""
        raw = torch.frombuffer(self._file.data, dtype=torch.uint8, offset=info.offset, count=self._size(info))
        return raw.view(info.shape[0], -1)

    @staticmethod
    def _size(info: TensorInfo) -> int:
        kind = GGML_TYPES[info.kind]
        return prod(info.shape) // kind.block * kind.size


def _pieces(blocks: int, kind: GGMLType) -> Iterator[slice]:
    step = max(1, _PIECE // kind.block)
    return (slice(at, at + step) for at in range(0, blocks, step))


def common_config(keys: Keys) -> dict[str, Any]:
    """What every architecture's metadata says, as config.json's keys."""
    meta, heads = keys.meta, keys.required("attention.head_count")
    embeddings = keys.file.tensors.get("token_embd.weight")
    return {
        "hidden_size": keys.required("embedding_length"),
        "num_hidden_layers": keys.required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads
        if keys.get("attention.head_count_kv") is None
        else keys.required("attention.head_count_kv"),
        "max_position_embeddings": keys.required("context_length"),
        "vocab_size": 0 if embeddings is None else embeddings.shape[0],
        "tie_word_embeddings": not keys.has("output.weight"),
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
    }
