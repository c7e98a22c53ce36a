"""Mutations: for each thing that implementers of the older families get wrong, getting it wrong shows in the logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from octavo_engine.layers import loading, rope
from octavo_engine.models import baichuan, bloom, falcon, gpt_bigcode, gpt_neox, gptj, load_model, mpt, qwen
from octavo_engine.models.gpt2 import GPT2
from octavo_engine.models.gpt_bigcode import GPTBigCode
from octavo_engine.models.mpt import MPT
from octavo_engine.models.opt import OPT, PostNormLayer, PreNormLayer
from octavo_engine.ops import Activation
from octavo_engine.ops.reference import ReferenceOps
from octavo_engine.weights import open_source
from tests.models.mutation_check import ORACLES, By, Mutation, Patch, Refused, Shape, check_it_shows, drawn_apart
from tests.models.mutations import (
    LATER_NAMES,
    NO_HEAD,
    NOTHING_IGNORED,
    TIED,
    UNTIED,
    activation,
    called_with,
    config,
    cut,
    edits_reversed,
    even_slopes,
    keys_and_values_swapped,
    made_as,
    names_swapped,
    one_after_the_other,
    one_norm,
    padded,
    per_head,
    positions_from,
    replaced,
    rows_as_stored,
    scaled_slopes,
    side_by_side,
    stored_as,
    table_from_0,
    unrounded_slopes,
    untied_if_there,
    without_norm,
)
from tests.models.mutations_rope import scaling_as, widened
from tests.models.stepper import Stepper
from tests.models.test_checkpoints import rewritten


def columns_per_head(value: Tensor) -> Tensor:
    return value[..., loading.qkv_rows(4, 1, 12)]


def weights_rows_alone(value: Tensor) -> Tensor:
    """For a bias whose rows are then taken for those of each head in turn: as it was."""
    return value[loading.qkv_rows(2, 1, 24).argsort()]


def half_of_it(config: Any, rotary_dim: int, *others: Any) -> rope.Rope:
    return rope.Rope(config, rotary_dim // 2, *others)


def logn_of_the_position(length: int, trained: int) -> Tensor:
    return torch.cat([torch.ones(1), logn(length, trained)[:-1]])


def logn_from_the_start(length: int, trained: int) -> Tensor:
    return torch.arange(1, length + 1).log() / torch.tensor(trained).log()


def of_the_current_length(lengths: tuple[int, ...], rows: int, by_prompt: bool) -> rope.Regimes:
    return Regimes(lengths, rows)


def layer_norm(self: loading.Loader, name: str, size: int, eps: float) -> Any:
    return self.layer_norm(name, size, eps, bias=False)


Regimes = rope.Regimes
logn = qwen._logn
QWEN = "qwen-v1-ntk-logn"
QK_LN = "mpt-qkln-clip-bias16"

# (shape, oracle or spelling, what is broken) -> a change of the config, or of the code
MUTATIONS: dict[tuple[str, str], Mutation] = {
    ("neox-parallel", "rows are not per head"): replaced(gpt_neox, "qkv_rows", rows_as_stored),
    ("neox-parallel", "the bias's rows are not"): stored_as("query_key_value.bias", weights_rows_alone),
    ("neox-parallel", "one norm for both"): one_norm,
    ("neox-parallel", "sequential"): config(use_parallel_residual=False),
    ("neox-parallel", "the whole head turns"): config(rope_parameters={"partial_rotary_factor": 1.0}),
    ("neox-parallel", "pairs are neighbours"): called_with(gpt_neox, "Attention", interleaved=True),
    ("neox-parallel", "tanh gelu"): activation(gpt_neox, Activation.GELU_TANH),
    ("neox-parallel", "tied"): TIED,
    ("neox-sequential", "parallel"): config(use_parallel_residual=True),
    ("neox-sequential", "exact gelu"): config(hidden_act="gelu"),
    ("neox-sequential", "the usual base"): config(rope_parameters={"partial_rotary_factor": 1.0}),
    ("neox-tied-unbiased", "biases of attention"): Refused(config(attention_bias=True), "query_key_value.bias is"),
    ("neox-tied-unbiased", "untied"): Refused(UNTIED, "embed_out.weight is missing"),
    ("pythia", "the usual base"): config(rotary_emb_base=None),
    ("pythia", "half of a head turns"): config(rotary_pct=0.5),
    ("pythia", "buffers are read"): Refused(NOTHING_IGNORED, "not used: .*attention.bias"),
    ("gptj", "pairs lie half a head apart"): called_with(gptj, "Attention", interleaved=False),
    ("gptj", "the whole head turns"): config(rotary_dim=12),
    ("gptj", "exact gelu"): activation(gptj, Activation.GELU),
    ("gptj", "one after the other"): one_after_the_other(gptj),
    ("gptj", "no bias on the head"): Refused(called_with(loading.Loader, "embedding_and_head", bias=False), "lm_head"),
    ("gptj", "tied"): Refused(TIED, "not used: lm_head.bias"),
    ("gptj", "a bias on q, k and v"): Refused(called_with(loading.Loader, "linear", bias=True), "q_proj.bias is miss"),
    ("gptj-whole-head", "four times as wide"): Refused(config(n_inner=None), "fc_in.weight has shape"),
    ("gptj-buffers", "read"): Refused(NOTHING_IGNORED, "not used: .*attn.bias"),
    ("bloom", "rows are not per head"): replaced(bloom, "qkv_rows", rows_as_stored),
    ("bloom", "no positions"): called_with(bloom, "Attention", alibi_slopes=None),
    ("bloom", "alibi is scaled, as Falcon's"): scaled_slopes(bloom, 12**-0.5),
    ("bloom", "scores not scaled"): called_with(bloom, "Attention", scale=1.0),
    ("bloom", "exact gelu"): activation(bloom, Activation.GELU),
    ("bloom", "the embedding not normalised"): without_norm("word_embeddings_layernorm"),
    ("bloom", "residual from the norm"): config(apply_residual_connection_post_layernorm=True),
    ("bloom", "untied"): NO_HEAD,
    ("bloom-residual-from-norm", "residual from the stream"): config(apply_residual_connection_post_layernorm=False),
    ("bloom-six-heads", "an even sequence of slopes"): replaced(bloom, "alibi_slopes", even_slopes),
    ("bloom-of-2022", "its names are the later ones"): Refused(LATER_NAMES, "transformer.word_embeddings.* missing"),
    ("bloom-of-2022", "n_embed unread"): Refused(config(n_embed=None), "hidden_size=None"),
    ("bloom-head-beside-embedding", "the head wins"): Refused(untied_if_there, "lm_head.weight has shape"),
    ("falcon-7b", "tanh gelu"): activation(falcon, Activation.GELU_TANH),
    ("falcon-7b", "pairs are neighbours"): called_with(falcon, "Attention", interleaved=True),
    ("falcon-7b", "half of a head turns"): replaced(falcon, "Rope", half_of_it),
    ("falcon-7b", "k and v swapped"): keys_and_values_swapped("query_key_value", 8),
    ("falcon-7b", "one after the other"): one_after_the_other(falcon),
    ("falcon-7b", "biases"): Refused(config(bias=True), "query_key_value.bias is missing"),
    ("falcon-7b", "as many key-value heads"): Refused(config(multi_query=False), "query_key_value.weight has shape"),
    ("falcon-7b", "untied"): NO_HEAD,
    ("falcon-40b", "rows are not per head"): replaced(falcon, "qkv_rows", rows_as_stored),
    ("falcon-40b", "norms swapped"): names_swapped("ln_attn", "ln_mlp"),
    ("falcon-40b", "one norm for both"): one_norm,
    ("falcon-40b", "one after the other"): one_after_the_other(falcon),
    ("falcon-40b", "num_kv_heads unread"): Refused(config(num_kv_heads=None), "query_key_value.weight has shape"),
    ("falcon-11b", "the usual base"): config(rope_parameters=None),
    ("falcon-11b", "a norm each"): Refused(config(num_ln_in_parallel_attn=2), "ln_attn.weight is missing"),
    ("falcon-11b", "four times as wide"): Refused(config(ffn_hidden_size=None), "dense_h_to_4h.weight has shape"),
    ("falcon-11b", "tied"): TIED,
    ("falcon-rw", "rows are not per head"): replaced(falcon, "qkv_rows", rows_as_stored),
    ("falcon-rw", "parallel"): side_by_side(falcon),
    ("falcon-rw", "alibi is not scaled"): scaled_slopes(falcon, 12**0.5),
    ("falcon-rw", "alibi is added twice"): scaled_slopes(falcon, 2.0),
    ("falcon-rw", "no biases"): Refused(config(bias=False), "not used: .*bias"),
    ("falcon-rw-rounded", "neither slopes nor products are rounded"): replaced(
        falcon, "alibi_slopes", unrounded_slopes
    ),
    ("falcon-rw-rounded", "products are not rounded"): replaced(
        falcon, "alibi_slopes", partial(unrounded_slopes, products_only=True)
    ),
    ("refined-web", "7b's decoder"): Refused(config(model_type="falcon"), "input_layernorm.weight is missing"),
    ("refined-web", "n_head_kv unread"): Refused(config(n_head_kv=None), "query_key_value.weight has shape"),
    ("refined-web-model-rw", "no alibi"): config(alibi=False),
    ("bigcode-tanh", "exact gelu"): activation(gpt_bigcode, Activation.GELU),
    ("bigcode-tanh", "k and v swapped"): keys_and_values_swapped("c_attn", 12),
    ("bigcode-tanh", "Conv1D, as GPT-2's"): stored_as("attn.c_proj.weight", Tensor.t),
    ("bigcode-tanh", "positions from 2"): made_as(GPTBigCode, embed_positions=positions_from(2)),
    ("bigcode-tanh", "as many key-value heads"): Refused(config(multi_query=False), "c_attn.weight has shape"),
    ("bigcode-tanh", "untied"): NO_HEAD,
    ("bigcode-multi-head", "rows are not per head"): replaced(gpt_bigcode, "qkv_rows", rows_as_stored),
    ("bigcode-multi-head", "tanh gelu"): config(activation_function="gelu_new"),
    ("bigcode-unscaled", "scaled"): config(scale_attn_weights=True),
    ("bigcode-buffers", "read"): Refused(NOTHING_IGNORED, "not used: .*attn.bias"),
    ("santacoder", "k and v swapped"): stored_as("kv_attn", lambda value: value.roll(12, -1)),
    ("santacoder", "a plain matrix"): stored_as("attn.c_proj.weight", Tensor.t),
    ("mpt", "tanh gelu"): activation(mpt, Activation.GELU_TANH),
    ("mpt", "another last slope"): config(attn_config={"alibi_bias_max": 16}),
    ("mpt", "no positions"): called_with(mpt, "Attention", alibi_slopes=None),
    ("mpt", "logits scaled"): config(logit_scale="inv_sqrt_d_model"),
    ("mpt", "k and v swapped"): keys_and_values_swapped("Wqkv", 48),
    ("mpt", "rows are per head"): per_head("Wqkv", 4, 1, 12),
    ("mpt", "biases"): Refused(config(no_bias=False), "norm_1.bias is missing"),
    ("mpt", "untied"): NO_HEAD,
    ("mpt-six-heads-clipped", "an even sequence of slopes"): replaced(mpt, "alibi_slopes", even_slopes),
    ("mpt-six-heads-clipped", "no clip"): config(attn_config={}),
    ("mpt-softmax-scale", "the usual scale"): config(attn_config={}),
    (QK_LN, "no clip"): config(attn_config={"alibi_bias_max": 16, "qk_ln": True}),
    (QK_LN, "norms before the clip"): edits_reversed(mpt),
    (QK_LN, "alibi_bias_max 8"): config(attn_config={"clip_qkv": 1.5, "qk_ln": True}),
    (QK_LN, "each head by itself"): called_with(mpt, "query_key_norms", head_dim=16),
    (QK_LN, "RMSNorm"): called_with(mpt, "query_key_norms", centred=False),
    (QK_LN, "q and k not normalised"): replaced(mpt, "query_key_norms", lambda *_, **__: ()),
    ("mpt-multi-query", "k and v swapped"): keys_and_values_swapped("Wqkv", 8),
    ("mpt-multi-query", "attn_type unread"): Refused(config(attn_config={}), "Wqkv.weight has shape"),
    ("mpt-multi-query-normalised", "no biases"): Refused(config(no_bias=True), "not used: .*bias"),
    ("mpt-grouped", "k and v swapped"): keys_and_values_swapped("Wqkv", 16),
    ("mpt-grouped", "expansion_ratio unread"): Refused(config(expansion_ratio=None), "up_proj.weight has shape"),
    ("mpt-grouped", "logits not scaled"): config(logit_scale=None),
    ("mpt-grouped-normalised", "each head by itself"): called_with(mpt, "query_key_norms", head_dim=12),
    ("mpt-learned-positions", "positions from 2"): made_as(MPT, embed_positions=positions_from(2)),
    ("mpt-learned-positions", "no positions"): Refused(config(learned_pos_emb=False), "not used: transformer.wpe"),
    ("gpt2", "plain matrices"): Refused(called_with(loading.Loader, "linear", transposed=False), "has shape"),
    ("gpt2", "a plain matrix where that fits"): stored_as("attn.c_proj.weight", Tensor.t),
    ("gpt2", "k and v swapped"): keys_and_values_swapped("c_attn", 48, 1),
    ("gpt2", "columns are per head"): stored_as("c_attn", columns_per_head),
    ("gpt2", "positions from 2, as OPT's"): made_as(GPT2, embed_positions=positions_from(2)),
    ("gpt2", "four times as wide"): Refused(config(n_inner=None), "c_fc.weight has shape"),
    ("gpt2", "untied"): NO_HEAD,
    ("gpt2-unscaled", "scaled"): config(scale_attn_weights=True),
    ("gpt2-unscaled", "exact gelu"): config(activation_function="gelu"),
    ("gpt2-unscaled", "as wide as the stream"): Refused(config(n_inner=48), "c_fc.weight has shape"),
    ("gpt2-by-layer", "no layer factor"): config(scale_attn_by_inverse_layer_idx=False),
    ("gpt2-no-prefix", "its names are the later ones"): Refused(LATER_NAMES, "wte.weight is missing"),
    ("gpt2-buffers", "read"): Refused(NOTHING_IGNORED, "not used: transformer.h.0.attn.bias"),
    ("opt", "gelu"): config(activation_function="gelu"),
    ("opt", "positions from 0"): table_from_0,
    ("opt", "no final norm"): made_as(OPT, final_norm=None),
    ("opt", "k and v swapped"): names_swapped("k_proj", "v_proj"),
    ("opt", "untied"): NO_HEAD,
    ("opt-no-final-norm", "a final norm"): Refused(config(_remove_final_layer_norm=False), "norm.weight is missing"),
    ("opt-no-final-norm", "a layer's norms swapped"): names_swapped("self_attn_layer_norm", "final_layer_norm"),
    ("opt-350m", "positions from 0"): table_from_0,
    ("opt-350m", "norms before"): replaced(PostNormLayer, "__call__", PreNormLayer.__call__),
    ("opt-350m", "a final norm"): Refused(config(do_layer_norm_before=True), "decoder.final_layer_norm.weight is"),
    ("opt-350m", "embedded at the full width"): Refused(config(word_embed_proj_dim=None), "embed_tokens.* has shape"),
    ("opt-350m", "padded, not projected"): made_as(OPT, project_in=padded),
    ("opt-350m", "cut, not projected"): made_as(OPT, project_out=cut),
    ("opt-galactica", "biases"): Refused(config(enable_bias=True), "bias is missing"),
    ("opt-galactica", "norms with weights"): Refused(config(layer_norm_elementwise_affine=True), "norm.weight is"),
    ("opt-of-2022", "its names are the later ones"): Refused(LATER_NAMES, "model.decoder.embed_tokens.* is missing"),
    ("opt-of-2022", "the head wins"): Refused(untied_if_there, "lm_head.weight has shape"),
    ("baichuan2-7b", "rows of the head as they are"): called_with(
        loading.Loader, "embedding_and_head", unit_rows=False
    ),
    ("baichuan2-7b", "k and v swapped"): keys_and_values_swapped("W_pack", 64),
    ("baichuan2-7b", "rows are per head"): per_head("W_pack", 4, 1, 16),
    ("baichuan2-7b", "pairs are neighbours"): called_with(baichuan, "Attention", interleaved=True),
    ("baichuan2-7b", "tied"): TIED,
    ("baichuan-13b", "rope"): config(max_position_embeddings=256),
    ("baichuan-13b", "an even sequence of slopes"): replaced(baichuan, "alibi_slopes", even_slopes),
    ("baichuan-13b", "alibi is scaled, as Falcon's"): scaled_slopes(baichuan, 16**-0.5),
    ("baichuan-13b", "rows of the head normalised"): config(z_loss_weight=0),
    (QWEN, "no logn"): config(use_logn_attn=False),
    (QWEN, "logn of one token less"): replaced(qwen, "_logn", logn_of_the_position),
    (QWEN, "logn from the start"): replaced(qwen, "_logn", logn_from_the_start),
    (QWEN, "no ntk"): scaling_as("dynamic", rope._default),
    (QWEN, "ntk by the plain ratio"): scaling_as("dynamic", lambda made, length: rope._dynamic(made, 130)),
    (QWEN, "ntk of the power of two below"): widened(lambda made, length: max(length / made.trained - 1, 1)),
    (QWEN, "ntk of the current length"): By(drawn_apart, replaced(rope, "Regimes", of_the_current_length)),
    (QWEN, "w1 is the gate"): names_swapped("w1.", "w2."),
    (QWEN, "k and v swapped"): keys_and_values_swapped("c_attn", 64),
    (QWEN, "rows are per head"): per_head("c_attn", 4, 1, 16),
    (QWEN, "intermediate_size is the width"): Refused(config(intermediate_size=2 * 192), "w2.weight has shape"),
    (QWEN, "LayerNorm"): replaced(loading.Loader, "rms_norm", layer_norm),
    (QWEN, "tied"): TIED,
}


@pytest.mark.parametrize(("name", "quirk"), MUTATIONS)
def test_it_shows(name: str, quirk: str, shape: Callable[[str], Shape], tmp_path: Path, monkeypatch: Patch) -> None:
    check_it_shows(shape(name), MUTATIONS[name, quirk], tmp_path, monkeypatch)


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
