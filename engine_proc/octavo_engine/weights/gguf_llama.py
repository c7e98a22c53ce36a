"""GGUF files of the llama architecture, seen under the names and in the row order of the published checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from octavo_engine.ops import QuantizedWeight
from octavo_engine.weights.gguf_file import GGUFFile, TensorInfo
from octavo_engine.weights.gguf_types import GGML_TYPES, GGMLType, type_name
from octavo_engine.weights.source import SourceError

__all__ = ["GGUFCheckpoint", "RowOrder", "gguf_config", "llama_checkpoint", "paired_rows", "renamed"]

RowOrder = Callable[[str, int], "Tensor | None"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FREQS = "rope_freqs.weight"
_PIECE = 1 << 19  # weights, 2 MiB of float32


class GGUFCheckpoint:
    """Tensors one at a time: float32 out of quantised types, or their codes and scales; as stored otherwise.

    published: a tensor's name in the file -> its published one. rows: a tensor's name without its layer, like
    "attn_q.weight", and its number of rows -> for each published row the file's, or None where they are the same.
    Rows are put in order as they lie in the file, before anything is made of them.
    """

    def __init__(self, file: GGUFFile, published: Callable[[str], str], rows: RowOrder) -> None:
        self._file, self._order = file, rows
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
            if name != _ROPE_FREQS:
                self._infos[published(name)] = info

    def names(self) -> Iterable[str]:
        return self._infos.keys()

    def nbytes(self, name: str) -> int:
        return self._size(self._infos[name])

    def get(self, name: str) -> Tensor:
        rows, kind = self._rows(name)
        return kind.dequantize(rows.reshape(-1, kind.size)).view(self._infos[name].shape)

    def get_as(self, name: str, dtype: torch.dtype) -> Tensor:
        """`get(name).to(dtype)` by pieces that stay in the cache: a third faster, and no float32 copy of the whole."""
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
        rows = self._raw(info)
        order = self._order(re.sub(r"^blk\.\d+\.", "", info.name), info.shape[0])
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


def renamed(names: Mapping[str, str], layers: str) -> Callable[[str], str]:
    """`published` of a GGUFCheckpoint. names: of ggml -> published, both without suffix; layers: what stands before a
    layer's number."""

    def published(name: str) -> str:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None or match[2] not in names:
            return name  # The loader will name it as not used.
        layer = "" if match[1] is None else f"{layers}{match[1]}."
        return f"{layer}{names[match[2]]}.{match[3]}"

    return published


def paired_rows(heads: Mapping[str, int]) -> RowOrder:
    """`rows` of a GGUFCheckpoint: for names with a number of heads, the converter wrote the rows of a head in pairs
    (i, i + D/2), so that llama.cpp may rotate neighbours."""

    def rows(name: str, count: int) -> Tensor | None:
        number = heads.get(name.split(".")[0])
        if number is None:
            return None
        return torch.arange(count).view(number, -1, 2).transpose(1, 2).flatten()

    return rows


def llama_checkpoint(file: GGUFFile) -> GGUFCheckpoint:
    heads = file.metadata["llama.attention.head_count"]
    kv_heads = file.metadata.get("llama.attention.head_count_kv", heads)
    return GGUFCheckpoint(file, renamed(_NAMES, "model.layers."), paired_rows({"attn_q": heads, "attn_k": kv_heads}))


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """config.json's keys out of llama.* metadata. Raises SourceError for other architectures."""
    meta, path = file.metadata, file.path
    if meta.get("general.architecture") != "llama":
        raise SourceError(f"{path}: GGUF architecture {meta.get('general.architecture')!r}; 'llama' is read")
    if meta.get("llama.expert_count"):
        raise SourceError(f"{path}: llama.expert_count {meta['llama.expert_count']}; mixtures of experts are not read")

    def required(key: str) -> Any:
        if key not in meta:
            raise SourceError(f"{path}: the metadata lacks {key}")
        if isinstance(meta[key], list):
            raise SourceError(f"{path}: {key} differs from layer to layer: {meta[key]}; one number is read")
        return meta[key]

    heads, hidden = required("llama.attention.head_count"), required("llama.embedding_length")
    kv_heads = required("llama.attention.head_count_kv") if "llama.attention.head_count_kv" in meta else heads
    head_dim = meta.get("llama.attention.key_length") or meta.get("llama.rope.dimension_count") or hidden // heads
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if meta.get(key, head_dim) != head_dim:
            raise SourceError(f"{path}: {key} {meta[key]} differs from the head size {head_dim}")
    window = meta.get("llama.attention.sliding_window")
    config = {
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "model_type": "mistral" if window else "llama",
        "hidden_size": hidden,
        "intermediate_size": required("llama.feed_forward_length"),
        "num_hidden_layers": required("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": required("llama.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": required("llama.context_length"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        "rope_parameters": _rope_parameters(file),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
    }
    return config | ({"sliding_window": window} if window else {})


def _rope_parameters(file: GGUFFile) -> dict[str, Any]:
    meta = file.metadata
    theta = {"rope_theta": meta.get("llama.rope.freq_base", 10000.0)}
    if _ROPE_FREQS in file.tensors:
        info = file.tensors[_ROPE_FREQS]
        if GGML_TYPES.get(info.kind) is not GGML_TYPES[0]:
            raise SourceError(f"{file.path}: {_ROPE_FREQS} has ggml type {info.kind}; F32 (0) is read")
        if info.offset + 4 * info.shape[0] > len(file.data):
            raise SourceError(f"{file.path}: {_ROPE_FREQS} {info.shape} passes the file's end")
        raw = torch.frombuffer(file.data, dtype=torch.float32, offset=info.offset, count=info.shape[0])
        return theta | {"rope_type": "freq_factors", "freq_factors": raw.tolist()}
    kind = meta.get("llama.rope.scaling.type", "none")
    factor = meta.get("llama.rope.scaling.factor", meta.get("llama.rope.scale_linear"))
    if kind == "none" and not factor:
        return theta
    scaling = {"rope_type": "linear" if kind == "none" else kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = meta.get("llama.rope.scaling.original_context_length")
    return theta | scaling
