"""A transformers model as a CausalLM: its own modelling code between octavo's linear layers and paged attention.

What the code needs besides keys and values can't be told from a config, so it is tried: two runs of two tokens, in
which each attention says what it is called with. A model that asks for what the engine lacks is refused there, by name.

Law 6 holds for the linear layers and the attention; what transformers computes between them is torch's, whose sums may
depend on how many rows there are.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from octavo_engine.layers.config import UnsupportedModel
from octavo_engine.layers.loading import CheckpointMismatch
from octavo_engine.models.base import ModelConfig
from octavo_engine.models.fallback.attention import IMPLEMENTATION, Layer, PagedAttention, Probe, attention, register
from octavo_engine.models.fallback.linear import pack_linears

if TYPE_CHECKING:
    from octavo_engine.layers.batch import Batch
    from octavo_engine.layers.rope import RotationTable
    from octavo_engine.ops import Ops
    from octavo_engine.quant.scheme import Formats

__all__ = ["TransformersModel", "load_fallback"]

log = logging.getLogger(__name__)
_INTERFACE = "models that transformers runs through its AttentionInterface"
_ATTENDED = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT = {"dynamic", "longrope", "su"}


class TransformersModel:
    """network: of transformers, with `IMPLEMENTATION` as its attention; its linear layers are taken over."""

    tables: Sequence[RotationTable] = ()  # positions are transformers' own

    def __init__(self, network: Any, ops: Ops, formats: Formats, dtype: torch.dtype) -> None:
        config = network.config.get_text_config()
        _check(network, config)
        head = network.get_output_embeddings()
        if head is None:
            raise UnsupportedModel("architectures", type(network).__name__, "models with a head over the vocabulary")
        pack_linears(network, head, ops, formats, dtype)
        self._network, self._dtype = network.to(ops.device).eval().requires_grad_(False), dtype
        self._body = _Body(getattr(network, network.base_model_prefix))
        setattr(network, network.base_model_prefix, self._body)
        probe = Probe()
        with torch.inference_mode():
            positions = torch.arange(2, dtype=torch.int32, device=ops.device)
            with attention(probe):
                hidden = self._hidden(positions + 1, positions)
            with attention(Probe()):
                other = self._hidden(positions * 0 + 2, positions)
            vocab_size = self.logits(hidden[:1]).shape[1]
        first = _one_shape(list(probe.layers.values()), config)
        # Attention gave zeros, so a token's row may only come from the token itself: 2 after 1, and 2 after 2.
        if (hidden[1] - other[1]).norm() > 0.01 * hidden[1].norm():
            raise UnsupportedModel(
                "architectures", type(network).__name__, "models in which nothing but attention looks at other tokens"
            )
        width = max(first.head_dim, first.value_dim)
        width += width % 2
        act_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        order = {module: i for i, module in enumerate(probe.layers)}
        self._attention = PagedAttention(ops, order, width, act_dtype)
        windows = {layer.window for layer in probe.layers.values()}
        self.config = ModelConfig(
            architecture=type(network).__name__,
            num_layers=len(probe.layers),
            num_heads=first.heads,
            num_kv_heads=first.kv_heads,
            head_dim=width,
            hidden_size=hidden.shape[1],
            vocab_size=vocab_size,
            max_position=getattr(config, "max_position_embeddings", None) or 2048,
            dtype=dtype,
            sliding_window=windows.pop() if len(windows) == 1 else 0,
            recordable=False,
        )

    def forward(self, batch: Batch) -> Tensor:
        with attention(self._attention.over(batch)):
            return self._hidden(batch.token_ids, batch.positions)

    def _hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        """[T, H] float32, of transformers' body: behind its final norm."""
        out = self._body(input_ids=ids.long()[None], position_ids=positions.long()[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0].float()
        return hidden

    def logits(self, rows: Tensor) -> Tensor:
        """By the model's own forward, for there the head's caps and scales are; it finds `rows` in its body's place."""
        with self._body.answering(rows.to(self._dtype)[None]):
            ids = torch.zeros(1, len(rows), dtype=torch.long, device=rows.device)
            logits: Tensor = self._network(input_ids=ids, use_cache=False).logits[0]
        return logits.float().contiguous()

    def hidden_states(self, rows: Tensor) -> Tensor:
        return rows


class _Body(nn.Module):
    """The model below its head, or what it is to have answered."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._answer: Tensor | None = None
        self._kind: Any = None  # of output, which differs by family in what else it may hold

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if self._answer is not None:
            return self._kind(last_hidden_state=self._answer)
        out = self.inner(*arguments, **named)
        self._kind = type(out)
        return out

    @contextmanager
    def answering(self, hidden: Tensor) -> Iterator[None]:
        self._answer = hidden
        try:
            yield
        finally:
            self._answer = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def _check(network: Any, config: Any) -> None:
    name = type(network).__name__
    if getattr(network.config, "is_encoder_decoder", False):
        raise UnsupportedModel("architectures", name, "decoder-only models; this one has an encoder")
    if network._is_stateful:
        raise UnsupportedModel("architectures", name, "models that keep nothing but keys and values of past tokens")
    if not network._supports_attention_backend:
        raise UnsupportedModel("architectures", name, _INTERFACE)
    takes = inspect.signature(network.forward).parameters.values()
    if not any(p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in takes):
        raise UnsupportedModel("architectures", name, "models whose forward takes position_ids")
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENDED
    if others:
        raise UnsupportedModel("layer_types", sorted(others), ", ".join(sorted(_ATTENDED)))
    rope = getattr(config, "rope_parameters", None) or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if entry.get("rope_type") in _LENGTH_DEPENDENT:
            raise UnsupportedModel(
                "rope_type", entry["rope_type"], "a rotation that doesn't depend on the longest sequence in the batch"
            )


def _one_shape(layers: list[Layer], config: Any) -> Layer:
    if not layers:
        raise UnsupportedModel("architectures", config.architectures, "models that call their attention function")
    shapes = {(layer.heads, layer.kv_heads, layer.head_dim, layer.value_dim) for layer in layers}
    if len(shapes) > 1:
        raise UnsupportedModel(
            "heads, key-value heads and their sizes", sorted(shapes), "the same in all layers, for one paged cache"
        )
    if layers[0].heads % layers[0].kv_heads:
        raise UnsupportedModel("num_key_value_heads", layers[0].kv_heads, f"a divisor of {layers[0].heads}")
    kinds = getattr(config, "layer_types", None)
    if kinds is None and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds = ["sliding_attention"] * len(layers)
    for i, (layer, kind) in enumerate(zip(layers, kinds or (), strict=False)):
        if kind == "sliding_attention" and not layer.window:
            raise UnsupportedModel("sliding_window", f"of layer {i}", "a window that the attention function is given")
    return layers[0]


def load_fallback(
    path: Path, config: dict[str, Any], ops: Ops, formats: Formats, dtype: torch.dtype, *, trust_remote_code: bool
) -> TransformersModel:
    """The checkpoint folder at `path`, by transformers. Raises UnsupportedModel, CheckpointMismatch."""
    import transformers

    name = (config.get("architectures") or [config.get("model_type")])[0]
    if "auto_map" in config and not trust_remote_code and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UnsupportedModel(
            "architectures",
            name,
            "what octavo or transformers has; this checkpoint brings its own code, which EngineOptions("
            "trust_remote_code=True) would run",
        )
    register()
    transformers.utils.logging.disable_progress_bar()
    try:
        network, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (ValueError, KeyError, ImportError, AttributeError) as error:
        if isinstance(error, KeyError) and IMPLEMENTATION in str(error):
            raise UnsupportedModel("architectures", name, _INTERFACE) from error
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModel("architectures", name, f"what octavo or transformers has ({why})") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            some = ", ".join(map(str, sorted(info[kind], key=str)[:8]))
            raise CheckpointMismatch(f"{len(info[kind])} {kind.replace('_', ' ')} as transformers loads {name}: {some}")
    model = TransformersModel(network, ops, formats, dtype)
    log.info(
        "%s has no file in octavo: it runs through transformers' own code with octavo's paged attention and linear "
        "layers, slower than a native one",
        name,
    )
    return model
