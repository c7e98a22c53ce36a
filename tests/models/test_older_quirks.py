"""Mutations: for each thing that implementers of the older families get wrong, getting it wrong shows in the logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from octavo_engine.layers import alibi, blocks, loading, rope
from octavo_engine.layers.attention import Attention
from octavo_engine.layers.mlp import MLP
from octavo_engine.models import baichuan, bloom, falcon, gpt_bigcode, gpt_neox, gptj, load_model, mpt
from octavo_engine.ops import Activation
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.models.family_oracles import expected_logits, prompts, write
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten

ORACLES = Path(__file__).parent / "oracles"
Patch = pytest.MonkeyPatch


def _rows_as_stored(module: Any) -> Callable[[Patch], None]:
    def plain(kv_heads: int, group: int, head_dim: int) -> torch.Tensor:
        return torch.arange(kv_heads * (group + 2) * head_dim)

    return lambda patch: patch.setattr(module, "qkv_rows", plain)


def _attention(module: Any, **values: Any) -> Callable[[Patch], None]:
    def made(*arguments: Any, **named: Any) -> Attention:
        return Attention(*arguments, **(named | values))

    return lambda patch: patch.setattr(module, "Attention", made)


def _edits_reversed(module: Any) -> Callable[[Patch], None]:
    def made(*arguments: Any, edits: Sequence[Any], **named: Any) -> Attention:
        return Attention(*arguments, edits=tuple(reversed(edits)), **named)

    return lambda patch: patch.setattr(module, "Attention", made)


def _ntk(wrong: rope.Scaling) -> Callable[[Patch], None]:
    return lambda patch: patch.setitem(rope._SCALINGS, "dynamic", (wrong, {"factor"}))


def _slopes(module: Any, name: str, wrong: Callable[..., torch.Tensor]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, wrong)


def _mlp_act(module: Any, act: Activation) -> Callable[[Patch], None]:
    def made(up: Any, down: Any) -> MLP:
        up.act = act
        return MLP(up, down)

    return lambda patch: patch.setattr(module, "MLP", made)


def _one_norm(patch: Patch) -> None:
    def call(self: blocks.ParallelBlock, x: Any, batch: Any, kv: Any) -> Any:
        h = self.attention_norm(x)
        self.attention.add_to(x, h, batch, kv)
        self.mlp.add_to(x, h)
        return x

    patch.setattr(blocks.ParallelBlock, "__call__", call)


def _loader(name: str, **values: Any) -> Callable[[Patch], None]:
    original = getattr(loading.Loader, name)

    def changed(self: Any, *arguments: Any, **named: Any) -> Any:
        return original(self, *arguments, **(named | {key: value for key, value in values.items() if key in named}))

    return lambda patch: patch.setattr(loading.Loader, name, changed)


def _swapped_gate(patch: Patch) -> None:
    original = loading.Loader.linear

    def changed(self: Any, names: Any, *arguments: Any, **named: Any) -> Any:
        names = ("w1", "w2") if names == ("w2", "w1") else names
        return original(self, names, *arguments, **named)

    patch.setattr(loading.Loader, "linear", changed)


def _norms_swapped(patch: Patch) -> None:
    original = loading.Loader.layer_norm

    def changed(self: Any, name: str, *arguments: Any, **named: Any) -> Any:
        other = {"ln_attn": "ln_mlp", "ln_mlp": "ln_attn"}.get(name, name)
        return original(self, other, *arguments, **named)

    patch.setattr(loading.Loader, "layer_norm", changed)


def _float32_slopes(heads: int) -> torch.Tensor:
    class Plain(torch.Tensor):
        def to(self, *arguments: Any, **named: Any) -> torch.Tensor:  # type: ignore[override]
            return self.as_subclass(torch.Tensor)

    return (alibi.alibi_slopes(heads) * 8**-0.5).as_subclass(Plain)


def _even_slopes(heads: int, bias_max: float = 8.0) -> torch.Tensor:
    return 2.0 ** (-bias_max * torch.arange(1, heads + 1) / heads)


def _config(**values: Any) -> dict[str, Any]:
    return values


# (shape or oracle, what is broken) -> a change of the config, or of the code
MUTATIONS: dict[tuple[str, str], dict[str, Any] | Callable[[Patch], None]] = {
    ("neox-parallel", "rows are not per head"): _rows_as_stored(gpt_neox),
    ("neox-parallel", "one norm for both"): _one_norm,
    ("neox-parallel", "sequential"): _config(use_parallel_residual=False),
    ("neox-parallel", "the whole head turns"): _config(rope_parameters={"partial_rotary_factor": 1.0}),
    ("neox-parallel", "pairs are neighbours"): _attention(gpt_neox, interleaved=True),
    ("neox-parallel", "tanh gelu"): _mlp_act(gpt_neox, Activation.GELU_TANH),
    ("neox-sequential", "parallel"): _config(use_parallel_residual=True),
    ("neox-sequential", "exact gelu"): _config(hidden_act="gelu"),
    ("neox-sequential", "the usual base"): _config(rope_parameters={"partial_rotary_factor": 1.0}),
    ("gptj", "pairs lie half a head apart"): _attention(gptj, interleaved=False),
    ("gptj", "the whole head turns"): _config(rotary_dim=12),
    ("gptj", "exact gelu"): _mlp_act(gptj, Activation.GELU),
    ("bloom", "rows are not per head"): _rows_as_stored(bloom),
    ("bloom", "no positions"): _attention(bloom, alibi_slopes=None),
    ("bloom", "exact gelu"): _mlp_act(bloom, Activation.GELU),
    ("bloom", "residual from the norm"): _config(apply_residual_connection_post_layernorm=True),
    ("bloom-residual-from-norm", "residual from the stream"): _config(apply_residual_connection_post_layernorm=False),
    ("bloom-six-heads", "an even sequence of slopes"): _slopes(bloom, "alibi_slopes", _even_slopes),
    ("falcon-7b", "exact gelu"): _mlp_act(falcon, Activation.GELU_TANH),
    ("falcon-7b", "pairs are neighbours"): _attention(falcon, interleaved=True),
    ("falcon-40b", "rows are not per head"): _rows_as_stored(falcon),
    ("falcon-40b", "norms swapped"): _norms_swapped,
    ("falcon-40b", "one norm for both"): _one_norm,
    ("falcon-11b", "the usual base"): _config(rope_parameters=None),
    ("falcon-rw", "rows are not per head"): _rows_as_stored(falcon),
    ("falcon-rw", "parallel"): lambda patch: patch.setattr(
        falcon, "SequentialBlock", lambda a, b, c, d: blocks.ParallelBlock(a, b, c, d)
    ),
    ("falcon-rw", "alibi is not scaled"): _slopes(falcon, "alibi_slopes", lambda n: alibi.alibi_slopes(n) * 12**0.5),
    ("falcon-rw-rounded", "alibi is not rounded"): _slopes(falcon, "alibi_slopes", _float32_slopes),
    ("bigcode-tanh", "exact gelu"): _mlp_act(gpt_bigcode, Activation.GELU),
    ("bigcode-multi-head", "rows are not per head"): _rows_as_stored(gpt_bigcode),
    ("bigcode-multi-head", "tanh gelu"): _config(activation_function="gelu_new"),
    ("bigcode-unscaled", "scaled"): _config(scale_attn_weights=True),
    ("mpt", "tanh gelu"): _mlp_act(mpt, Activation.GELU_TANH),
    ("mpt", "another last slope"): _config(attn_config={"alibi_bias_max": 16}),
    ("mpt", "logits not scaled"): _config(logit_scale="inv_sqrt_d_model"),
    ("mpt-six-heads-clipped", "an even sequence of slopes"): _slopes(mpt, "alibi_slopes", _even_slopes),
    ("mpt-six-heads-clipped", "no clip"): _config(attn_config={}),
    ("mpt-softmax-scale", "the usual scale"): _config(attn_config={}),
    ("gpt2-by-layer", "no layer factor"): _config(scale_attn_by_inverse_layer_idx=False),
    ("opt-350m", "positions from 0"): lambda patch: patch.setattr(
        loading.Loader, "_table", _table_from_0(loading.Loader._table)
    ),
    ("mpt-qkln-clip-bias16", "no clip"): _config(attn_config={"alibi_bias_max": 16, "qk_ln": True}),
    ("mpt-qkln-clip-bias16", "norms before the clip"): _edits_reversed(mpt),
    ("mpt-qkln-clip-bias16", "alibi_bias_max 8"): _config(attn_config={"clip_qkv": 1.5, "qk_ln": True}),
    ("baichuan2-7b", "rows of the head as they are"): _loader("embedding_and_head", unit_rows=False),
    ("baichuan-13b", "rope"): _config(max_position_embeddings=256),
    ("baichuan-13b", "an even sequence of slopes"): _slopes(baichuan, "alibi_slopes", _even_slopes),
    ("baichuan-13b", "rows of the head normalised"): _config(z_loss_weight=0),
    ("qwen-v1-ntk-logn", "no logn"): _config(use_logn_attn=False),
    ("qwen-v1-ntk-logn", "no ntk"): _ntk(lambda made, length: rope._default(made, length)),
    ("qwen-v1-ntk-logn", "ntk by the plain ratio"): _ntk(lambda made, length: rope._dynamic(made, 130)),
    ("qwen-v1-ntk-logn", "w1 is the gate"): _swapped_gate,
}


def _table_from_0(original: Any) -> Any:
    def table(self: Any, name: str, rows: int, width: int, skip: int) -> torch.Tensor:
        made: torch.Tensor = original(self, name, rows, width, 0)
        return made[: rows - skip].contiguous()

    return table


def _deviation(folder: Path, asked: list[int], expected: torch.Tensor) -> float:
    ops = ReferenceOps()
    model = load_model(open_source(folder), ops, torch.float32)
    logits = Stepper(model, ops, sequences=1).prefill([asked])[0]
    return float((logits[-len(expected) :] - expected).abs().max())


@pytest.mark.parametrize(("name", "quirk"), MUTATIONS)
def test_it_shows(name: str, quirk: str, tmp_path: Path, monkeypatch: Patch) -> None:
    if (ORACLES / name).is_dir():
        folder = ORACLES / name
        entry = json.loads((folder / "oracle.json").read_text())["prompts"][-1]
        asked = entry["ids"]
        expected = load_file(folder / "logits.safetensors")["last_logits"][-1:]
    else:
        folder, asked, expected = write(name, tmp_path / "m"), prompts(name)[-1], expected_logits(name)[-1]
    assert _deviation(folder, asked, expected) < 1e-4
    mutation = MUTATIONS[name, quirk]
    if isinstance(mutation, dict):
        folder = rewritten(folder, tmp_path / "changed", load_file(folder / "model.safetensors"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | mutation))
    else:
        mutation(monkeypatch)
    assert _deviation(folder, asked, expected) > 5e-4


@pytest.mark.parametrize(("name", "vocab", "unit_rows"), [("BaiChuan", 256, False), ("Baichuan", 125_696, True)])
def test_what_tells_baichuan_s_generations_apart(name: str, vocab: int, unit_rows: bool, tmp_path: Path) -> None:
    """Where a config lacks `z_loss_weight`, the size of the second generation's vocabulary does."""
    tensors = load_file(ORACLES / "baichuan2-7b" / "model.safetensors")
    lengths = tensors["lm_head.weight"].norm(dim=1)
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[key] = torch.cat([tensors[key], torch.ones(vocab - 256, 64)])
    folder = rewritten(ORACLES / "baichuan2-7b", tmp_path / "m", tensors)
    config = json.loads((folder / "config.json").read_text())
    del config["z_loss_weight"]
    config |= {"architectures": [f"{name}ForCausalLM"], "vocab_size": vocab}
    (folder / "config.json").write_text(json.dumps(config))
    entry = json.loads((ORACLES / "baichuan2-7b" / "oracle.json").read_text())["prompts"][1]
    expected = load_file(ORACLES / "baichuan2-7b" / "logits.safetensors")["last_logits"][1]
    model = load_model(open_source(folder), ReferenceOps(), torch.float32)
    logits = Stepper(model, ReferenceOps(), sequences=1).prefill([entry["ids"]])[0][-1][:256]
    torch.testing.assert_close(logits if unit_rows else logits / lengths, expected, atol=1e-4, rtol=1e-5)
