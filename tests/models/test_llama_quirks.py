"""Mutations: for each thing that implementers of LLaMA's relatives get wrong, getting it wrong shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from octavo_engine.layers import attention, blocks, loading, moe, norm, rope
from octavo_engine.models import CheckpointMismatch, UnsupportedModel, internlm2, load_model
from octavo_engine.models.cohere import Cohere
from octavo_engine.models.gemma import Gemma
from octavo_engine.models.gemma2 import Gemma2
from octavo_engine.models.gemma3 import Gemma3
from octavo_engine.models.granite import Granite
from octavo_engine.models.internlm import InternLM
from octavo_engine.models.llama import Llama
from octavo_engine.models.olmo2 import Olmo2
from octavo_engine.models.olmoe import Olmoe
from octavo_engine.models.phi import Phi
from octavo_engine.models.qwen2 import Qwen2
from octavo_engine.models.qwen3 import Qwen3
from octavo_engine.models.smollm3 import SmolLM3
from octavo_engine.models.stablelm import StableLM
from octavo_engine.models.starcoder2 import Starcoder2
from octavo_engine.ops import Activation
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.models.family_oracles import FAMILIES, answers, prompts, write
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten

Patch = pytest.MonkeyPatch
Mutation = dict[str, Any] | Callable[[Patch], None]


def config(**values: Any) -> dict[str, Any]:
    return values


def replaced(where: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(where, name, value)


def read_as(model: type[Llama], **values: Any) -> Callable[[Patch], None]:
    """What the family's `read` says, but for these attributes; functions of the model where callable."""
    original = model.read

    def read(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        for name, value in values.items():
            setattr(self, name, value(self) if callable(value) else value)

    return lambda patch: patch.setattr(model, "read", read)


def called_with(where: Any, name: str, **values: Any) -> Callable[[Patch], None]:
    """A function whose keyword arguments are these instead."""
    original = getattr(where, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        return original(*arguments, **(named | values))

    return lambda patch: patch.setattr(where, name, changed)


def norms_of(module: str, **values: Any) -> Callable[[Patch], None]:
    def patched(patch: Patch) -> None:
        called_with(norm, "query_key_norms", **values)(patch)
        patch.setattr(f"octavo_engine.models.{module}.query_key_norms", norm.query_key_norms)

    return patched


def names_swapped(a: str, b: str) -> Callable[[Patch], None]:
    original = loading.Loader.tensor

    def tensor(self: Any, name: str, *shape: int, **named: Any) -> torch.Tensor:
        changed = name.replace(a, b) if a in name else name.replace(b, a)
        return original(self, changed, *shape, **named)

    return lambda patch: patch.setattr(loading.Loader, "tensor", tensor)


def halves_swapped(part: str) -> Callable[[Patch], None]:
    original = loading.Loader.tensor

    def tensor(self: Any, name: str, *shape: int, **named: Any) -> torch.Tensor:
        value = original(self, name, *shape, **named)
        return value.roll(len(value) // 2, 0) if part in name else value

    return lambda patch: patch.setattr(loading.Loader, "tensor", tensor)


def edits_behind_the_rotation(patch: Patch) -> None:
    original = ReferenceOps.paged_attention

    def init(self: Any, *arguments: Any, edits: Any = (), **named: Any) -> None:
        original_init(self, *arguments, **named)
        self.later = edits

    def heads(self: Any, x: Any, batch: Any, kv: Any) -> Any:
        ops = self.ops

        def late(qkv: Any, *arguments: Any, **named: Any) -> Any:
            for edit in self.later:
                edit(qkv, batch.positions)
            return original(ops, qkv, *arguments, **named)

        ops.paged_attention = late
        return original_heads(self, x, batch, kv)

    original_init, original_heads = attention.Attention.__init__, attention.Attention.heads
    slots = type("Open", (attention.Attention,), {"__init__": init, "heads": heads})
    patch.setattr("octavo_engine.models.llama.Attention", slots)


def sequential(model: type[Llama]) -> Callable[[Patch], None]:
    def block(self: Any, loader: Any, i: int) -> Any:
        first = original(self, loader, i)
        return blocks.SequentialBlock(first.attention_norm, first.attention, first.attention_norm, first.mlp)

    original = model.block
    return lambda patch: patch.setattr(model, "block", block)


def sandwich_norms_behind_the_addition(patch: Patch) -> None:
    def call(self: Any, x: Any, batch: Any, kv: Any) -> Any:
        x += self.attention(self.attention_norm(x), batch, kv)
        x = self.after_attention(x)
        x += self.mlp(self.mlp_norm(x))
        return self.after_mlp(x)

    patch.setattr(blocks.SandwichBlock, "__call__", call)


def norms_before(patch: Patch) -> None:
    def call(self: Any, x: Any, batch: Any, kv: Any) -> Any:
        x += self.attention(self.after_attention(x), batch, kv)
        x += self.mlp(self.after_mlp(x))
        return x

    patch.setattr(blocks.PostNormBlock, "__call__", call)


def shares(renormalise: bool) -> Callable[[Patch], None]:
    original = moe.MoE.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.routing = self.routing._replace(renormalise=renormalise)

    return lambda patch: patch.setattr(moe.MoE, "__init__", init)


def one_more_expert(patch: Patch) -> None:
    original = moe.MoE.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.routing = self.routing._replace(top_k=self.routing.top_k + 1)

    patch.setattr(moe.MoE, "__init__", init)


def ungated(self: Any, residual: Any, x: Any, gate: Any) -> None:
    residual += x


def rms_new_norm(self: Any, loader: Any, name: str, scale: float = 1.0) -> Any:
    loader.ignore(rf".*{name}\.bias")
    return loader.rms_norm(name, self.hidden, self.eps)


def clip_first(self: Any, loader: Any) -> Any:
    return tuple(reversed(original_edits(self, loader)))


original_edits = Olmoe.edits


def one_weight_for_all_heads(patch: Patch) -> None:
    original = norm.query_key_norms

    def same(ops: Any, weights: Any, biases: Any, eps: float, *, head_dim: int, **named: Any) -> Any:
        first = tuple(weight[:head_dim].repeat(len(weight) // head_dim) for weight in weights)
        return original(ops, first, biases, eps, head_dim=head_dim, **named)

    for module in ("stablelm", "cohere"):
        patch.setattr(f"octavo_engine.models.{module}.query_key_norms", same)


def without_magnitude(kind: str) -> Callable[[Patch], None]:
    scaling, known = rope._SCALINGS[kind]
    return lambda patch: patch.setitem(rope._SCALINGS, kind, (lambda *of: (scaling(*of)[0], 1.0), known))


def scaling_as(kind: str, other: rope.Scaling) -> Callable[[Patch], None]:
    return lambda patch: patch.setitem(rope._SCALINGS, kind, (other, rope._SCALINGS[kind][1]))


def llama3_without_a_blend(made: rope.Rope, length: int) -> tuple[torch.Tensor, float]:
    inverse = 1.0 / made.powers()
    long = made.original * inverse / 6.2831853 < made.params.number("high_freq_factor")
    return torch.where(long, inverse / made.factor, inverse), 1.0


def short_factors(made: rope.Rope, length: int) -> tuple[torch.Tensor, float]:
    return rope._longrope(made, made.original)


def long_factors(made: rope.Rope, length: int) -> tuple[torch.Tensor, float]:
    return rope._longrope(made, made.original + 1)


def rows_as_stored(kv_heads: int, group: int, head_dim: int) -> torch.Tensor:
    return torch.arange(kv_heads * (group + 2) * head_dim)


NEIGHBOURS = replaced(Llama, "interleaved", True)
UNTIED = config(tie_word_embeddings=False)
FLAT = {"rope_type": "default", "rope_theta": 10000.0}
MUTATIONS: dict[tuple[str, str], Mutation] = {
    ("llama", "pairs are neighbours"): NEIGHBOURS,
    ("llama-1", "another theta where the key is absent"): config(rope_theta=500000.0),
    ("llama-1", "grouped heads where the key is absent"): config(num_key_value_heads=2),
    ("llama-head-dim", "head_dim is hidden / heads"): config(head_dim=None),
    ("llama-biases", "no bias on o"): read_as(Llama, out_bias=False),
    ("llama-theta", "rope_theta ignored"): config(rope_theta=None),
    ("llama-mqa-tied", "untied"): UNTIED,
    ("llama-linear", "positions not divided"): config(rope_scaling=None),
    ("llama-llama3", "no blend"): scaling_as("llama3", llama3_without_a_blend),
    ("llama-yarn", "scores not sharpened"): without_magnitude("yarn"),
    ("llama-yarn", "factor from the lengths"): replaced(
        rope.Rope, "factor", property(lambda r: r.trained / r.original)
    ),
    ("llama-yarn", "plain interpolation"): scaling_as("yarn", rope._linear),
    ("llama-dynamic-beyond", "base of the trained length"): scaling_as("dynamic", rope._default),
    ("llama-dynamic-beyond", "base of the length itself"): scaling_as(
        "dynamic", lambda made, length: rope._dynamic(made, 130)
    ),
    ("internlm-dynamic-beyond", "base of the trained length"): config(rotary={"base": 10000, "type": "origin"}),
    ("internlm", "no bias on o"): read_as(InternLM, out_bias=False),
    ("internlm2", "rows as stored"): replaced(internlm2, "qkv_rows", rows_as_stored),
    ("internlm2", "w3 is the gate"): names_swapped("w1.", "w3."),
    ("aquila2-16k", "positions not divided"): config(rope_scaling=None),
    ("mistral", "the window does not count the query"): config(sliding_window=25),
    ("mistral-full", "null is 4096, or any window"): config(sliding_window=24),
    ("mixtral", "shares as they are"): shares(False),
    ("mixtral", "w3 is the gate"): names_swapped("w1.", "w3."),
    ("mixtral", "one more expert"): one_more_expert,
    ("mixtral-window", "no window"): config(sliding_window=None),
    ("qwen2", "no biases"): read_as(Qwen2, qkv_bias=False),
    ("qwen2", "a bias on o"): read_as(Qwen2, out_bias=True),
    ("qwen2-window", "all layers slide"): config(max_window_layers=0),
    ("qwen2-window", "no layer slides"): config(use_sliding_window=False),
    ("qwen2-window-unused", "slides though it is switched off"): config(use_sliding_window=True),
    ("qwen2-yarn-tied", "no scaling"): config(rope_scaling=None),
    ("qwen2-moe", "shares renormalised"): shares(True),
    ("qwen2-moe", "the shared expert is not gated"): replaced(ReferenceOps, "gated_add_", ungated),
    ("qwen2-moe-some-dense", "mlp_only_layers ignored"): config(mlp_only_layers=[]),
    ("qwen2-moe-some-dense", "decoder_sparse_step from 0"): config(decoder_sparse_step=1),
    ("qwen3", "q and k not normalised"): replaced(Qwen3, "edits", Llama.edits),
    ("qwen3", "q and k normalised behind the rotation"): edits_behind_the_rotation,
    ("qwen3", "q and k normalised over their whole widths"): norms_of("qwen3", head_dim=None),
    ("qwen3-biases", "no biases"): config(attention_bias=False),
    ("qwen3-no-head-dim", "head_dim is hidden / heads"): config(head_dim=16),
    ("qwen3-moe", "shares as they are"): shares(False),
    ("gemma", "norms by w"): called_with(loading.Loader, "rms_norm", offset=0.0),
    ("gemma", "embeddings not scaled"): read_as(Gemma, embedding_scale=1.0),
    ("gemma", "untied"): UNTIED,
    ("gemma", "pairs are neighbours"): NEIGHBOURS,
    ("gemma-gelu", "exact gelu"): read_as(Gemma, act=Activation.GELU),
    ("gemma2", "scores by the head's size"): config(query_pre_attn_scalar=16),
    ("gemma2", "scores not capped"): config(attn_logit_softcapping=None),
    ("gemma2", "logits not capped"): config(final_logit_softcapping=None),
    ("gemma2", "norms behind the addition"): sandwich_norms_behind_the_addition,
    ("gemma2-no-types", "the other layers slide"): replaced(Gemma2, "slides", lambda self, config, i: i % 2 == 1),
    ("gemma2", "the window does not count the query"): config(sliding_window=25),
    ("gemma3-pattern", "another pattern"): config(sliding_window_pattern=2),
    ("gemma3-scaled", "local layers rotate as the others"): read_as(Gemma3, ropes=lambda m: [m.ropes[-1]] * 3),
    ("gemma3-scaled", "others rotate as local ones"): read_as(Gemma3, ropes=lambda m: [m.ropes[0]] * 3),
    ("gemma3", "q and k not normalised"): replaced(Gemma3, "edits", Llama.edits),
    ("gemma3", "q and k normalised by w"): replaced(Gemma3, "edits", Qwen3.edits),
    ("gemma3-with-images", "scaling of the full layers lost"): scaling_as("linear", rope._default),
    ("phi", "the whole head turns"): config(rope_parameters=FLAT | {"partial_rotary_factor": 1.0}),
    ("phi", "one after the other"): sequential(Phi),
    ("phi", "no bias on the head"): replaced(Phi, "head_bias", False),
    ("phi", "exact gelu"): config(hidden_act="gelu"),
    ("phi-2", "half of the head turns"): config(partial_rotary_factor=0.5),
    ("phi-qk-norm", "RMSNorm"): norms_of("phi", centred=False),
    ("phi-qk-norm", "not normalised"): replaced(Phi, "edits", Llama.edits),
    ("phi3", "up before gate"): halves_swapped("gate_up_proj"),
    ("phi3-window", "no window"): config(sliding_window=None),
    ("phi3-long", "scores not sharpened"): without_magnitude("longrope"),
    ("phi3-long", "short factors"): scaling_as("longrope", short_factors),
    ("phi3-short", "long factors"): scaling_as("longrope", long_factors),
    ("phi3-called-yarn", "not scaled"): scaling_as("longrope", rope._default),
    ("phi4-mini-old-keys", "the whole head turns"): config(partial_rotary_factor=1.0),
    ("phi4-mini", "untied"): UNTIED,
    ("smollm3", "all layers rotate"): config(no_rope_layers=[1, 1, 1, 1]),
    ("smollm3-interval", "every fourth"): config(no_rope_layer_interval=4),
    ("smollm3-interval", "untied"): UNTIED,
    ("smollm3-untied-theta", "theta 1e4"): config(rope_theta=10000.0),
    ("stablelm", "RMSNorm"): replaced(StableLM, "new_norm", rms_new_norm),
    ("stablelm", "half of the head turns"): config(rope_parameters=FLAT | {"partial_rotary_factor": 0.5}),
    ("stablelm-2", "no biases"): config(use_qkv_bias=False),
    ("stablelm-12b", "one after the other"): config(use_parallel_residual=False),
    ("stablelm-12b", "sequential with one norm"): sequential(StableLM),
    ("stablelm-12b", "one weight for all heads"): one_weight_for_all_heads,
    ("stablelm-12b", "RMSNorm"): norms_of("stablelm", centred=False),
    ("stablelm-epoch", "norm_eps ignored"): config(norm_eps=1e-5),
    ("stablelm-epoch", "rope_pct ignored"): config(rope_pct=None, partial_rotary_factor=1.0),
    ("starcoder2", "no window"): config(sliding_window=None),
    ("starcoder2", "exact gelu"): config(hidden_act="gelu"),
    ("starcoder2", "untied"): UNTIED,
    ("starcoder2", "RMSNorm"): replaced(Starcoder2, "new_norm", rms_new_norm),
    ("granite", "embeddings not scaled"): config(embedding_multiplier=1.0),
    ("granite", "blocks add wholly"): config(residual_multiplier=1.0),
    ("granite", "scores by the head's size"): config(attention_multiplier=8**-0.5),
    ("granite", "logits not scaled"): config(logits_scaling=1.0),
    ("granite-biases", "eps of the stream, not of the stream over r"): read_as(Granite, eps=1e-2),
    ("cohere", "pairs lie half a head apart"): replaced(Cohere, "interleaved", False),
    ("cohere", "one after the other"): sequential(Cohere),
    ("cohere", "logits not scaled"): config(logit_scale=1.0),
    ("cohere", "RMSNorm"): replaced(Cohere, "new_norm", rms_new_norm),
    ("cohere-plus", "not normalised"): replaced(Cohere, "edits", Llama.edits),
    ("cohere-plus", "RMSNorm"): norms_of("cohere", centred=False),
    ("cohere-plus", "one weight for all heads"): one_weight_for_all_heads,
    ("olmo2", "norms before"): norms_before,
    ("olmo2", "each head by itself"): norms_of("olmo2", head_dim=8),
    ("olmo2", "not normalised"): replaced(Olmo2, "edits", Llama.edits),
    ("olmoe", "shares renormalised"): shares(True),
    ("olmoe", "each head by itself"): norms_of("olmoe", head_dim=16),
    ("olmoe-clipped", "no clip"): config(clip_qkv=None),
    ("olmoe-clipped", "clipped before the norms"): replaced(Olmoe, "edits", clip_first),
    ("olmoe-clipped", "shares as they are"): config(norm_topk_prob=False),
    ("smollm3-window", "no window"): config(use_sliding_window=False, layer_types=None),
    ("smollm3", "the layers without positions rotate alone"): read_as(
        SmolLM3, ropes=lambda m: [m.ropes[0] if r is None else None for r in m.ropes]
    ),
}


def deviation(name: str, folder: Path) -> float:
    ops = ReferenceOps()
    model = load_model(open_source(folder), ops, torch.float32, max_model_len=FAMILIES[name].max_model_len)
    logits = Stepper(model, ops, sequences=1).prefill([prompts(name)[-1]])[0]
    return float((logits - answers(name)[-1].logits).abs().max())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write(name, tmp_path_factory.mktemp(name))
            assert deviation(name, made[name]) < 1e-4
        return made[name]

    return folder


@pytest.mark.parametrize(("name", "quirk"), MUTATIONS)
def test_it_shows(name: str, quirk: str, published: Callable[[str], Path], tmp_path: Path, monkeypatch: Patch) -> None:
    """In the logits, or because the checkpoint is refused."""
    folder, mutation = published(name), MUTATIONS[name, quirk]
    if isinstance(mutation, dict):
        folder = rewritten(folder, tmp_path / "changed", load_file(folder / "model.safetensors"))
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | mutation))
    else:
        mutation(monkeypatch)
    try:
        changed = deviation(name, folder)
    except (CheckpointMismatch, UnsupportedModel):
        return
    assert changed > 5e-4
