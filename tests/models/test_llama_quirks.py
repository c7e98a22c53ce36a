"""Mutations: for each thing that implementers of LLaMA's relatives get wrong, getting it wrong shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from octavo_engine.layers import loading, rope
from octavo_engine.models import internlm2, llama
from octavo_engine.models.gemma import Gemma
from octavo_engine.models.gemma2 import Gemma2
from octavo_engine.models.gemma3 import Gemma3
from octavo_engine.models.granite import Granite
from octavo_engine.models.internlm import InternLM
from octavo_engine.models.llama import Llama
from octavo_engine.models.olmoe import Olmoe
from octavo_engine.models.phi import Phi
from octavo_engine.models.qwen2 import Qwen2
from octavo_engine.models.qwen3 import Qwen3
from octavo_engine.models.smollm3 import SmolLM3
from octavo_engine.models.stablelm import StableLM
from octavo_engine.models.starcoder2 import Starcoder2
from octavo_engine.ops import Activation
from octavo_engine.ops.reference import ReferenceOps
from tests.models.mutation_check import (
    By,
    Mutation,
    Patch,
    Refused,
    Shape,
    check_it_shows,
    drawn_apart,
    embeddings_apart,
    last_norms_apart,
)
from tests.models.mutations import (
    NEIGHBOURS,
    NO_HEAD,
    NOT_NORMALISED,
    NOTHING_IGNORED,
    called_with,
    capped_behind_the_mask,
    clip_first,
    config,
    edits_behind_the_rotation,
    halves_swapped,
    keys_and_values_swapped,
    names_swapped,
    norms_before,
    norms_of,
    one_more_expert,
    one_weight_for_all_heads,
    per_head,
    read_as,
    replaced,
    rms_new_norm,
    rounded_norms,
    rows_as_stored,
    sandwich_norms_behind_the_addition,
    sequential,
    shares,
    stored_as,
    the_last_part_turns,
    ungated,
    without_head_biases,
)
from tests.models.mutations_rope import (
    llama3_without_a_blend,
    long_factors,
    magnitude,
    original_is_trained,
    rope_key_unread,
    rope_params,
    scaling_as,
    short_factors,
    widened,
    without_magnitude,
)

FLAT = {"rope_type": "default", "rope_theta": 10000.0}
MUTATIONS: dict[tuple[str, str], Mutation] = {
    ("llama", "pairs are neighbours"): NEIGHBOURS,
    ("llama-1", "another theta where the key is absent"): config(rope_theta=500000.0),
    ("llama-1", "grouped heads where the key is absent"): Refused(
        config(num_key_value_heads=2), "k_proj.weight has shape"
    ),
    ("llama-head-dim", "head_dim is hidden / heads"): Refused(config(head_dim=None), "q_proj.weight has shape"),
    ("llama-biases", "no bias on o"): Refused(read_as(Llama, out_bias=False), "not used: .*o_proj.bias"),
    ("llama-theta", "rope_theta ignored"): config(rope_theta=None),
    ("llama-mqa-tied", "untied"): NO_HEAD,
    ("llama-linear", "positions not divided"): config(rope_scaling=None),
    ("llama-llama3", "no blend"): scaling_as("llama3", llama3_without_a_blend),
    ("llama-yarn", "scores not sharpened"): without_magnitude("yarn"),
    ("llama-yarn", "factor from the lengths"): replaced(
        rope.Rope, "factor", property(lambda r: r.trained / r.original)
    ),
    ("llama-yarn", "plain interpolation"): scaling_as("yarn", rope._linear),
    ("llama-dynamic-beyond", "base of the trained length"): scaling_as("dynamic", rope._default),
    ("llama-dynamic-beyond", "base of the next power of two"): scaling_as(
        "dynamic", lambda made, length: rope._dynamic(made, 256)
    ),
    ("internlm-dynamic-beyond", "base of the trained length"): config(rotary={"base": 10000, "type": "origin"}),
    ("internlm", "no bias on o"): Refused(read_as(InternLM, out_bias=False), "not used: .*o_proj.bias"),
    ("internlm2", "rows as stored"): replaced(internlm2, "qkv_rows", rows_as_stored),
    ("internlm2", "w3 is the gate"): names_swapped("w1.", "w3."),
    ("aquila2-16k", "positions not divided"): config(rope_scaling=None),
    ("mistral", "the window does not count the query"): config(sliding_window=25),
    ("mistral-full", "null is 4096, or any window"): config(sliding_window=24),
    ("mixtral", "shares as they are"): shares(False),
    ("mixtral", "w3 is the gate"): names_swapped("w1.", "w3."),
    ("mixtral", "one more expert"): one_more_expert,
    ("mixtral-window", "no window"): config(sliding_window=None),
    ("qwen2", "no biases"): Refused(read_as(Qwen2, qkv_bias=False), "not used: .*k_proj.bias"),
    ("qwen2", "a bias on o"): Refused(read_as(Qwen2, out_bias=True), "o_proj.bias is missing"),
    ("qwen2-window", "all layers slide"): config(max_window_layers=0),
    ("qwen2-window", "no layer slides"): config(use_sliding_window=False),
    ("qwen2-window-unused", "slides though it is switched off"): config(use_sliding_window=True),
    ("qwen2-yarn-tied", "no scaling"): config(rope_scaling=None),
    ("qwen2-moe", "shares renormalised"): shares(True),
    ("qwen2-moe", "the shared expert is not gated"): replaced(ReferenceOps, "gated_add_", ungated),
    ("qwen2-moe-some-dense", "mlp_only_layers ignored"): Refused(
        config(mlp_only_layers=[]), r"layers.3.mlp.shared_expert.* missing"
    ),
    ("qwen2-moe-some-dense", "every layer has experts"): Refused(
        config(decoder_sparse_step=1), r"layers.0.mlp.shared_expert.* missing"
    ),
    ("qwen3", "q and k not normalised"): NOT_NORMALISED,
    ("qwen3", "q and k normalised behind the rotation"): edits_behind_the_rotation,
    ("qwen3", "q and k normalised over their whole widths"): norms_of("llama", head_dim=None),
    ("qwen3-biases", "no biases"): Refused(config(attention_bias=False), "not used: .*k_proj.bias"),
    ("qwen3-no-head-dim", "head_dim is hidden / heads"): Refused(config(head_dim=16), "q_proj.weight has shape"),
    ("qwen3-moe", "shares as they are"): shares(False),
    ("gemma", "norms by w"): called_with(loading.Loader, "rms_norm", offset=0.0),
    ("gemma", "embeddings not scaled"): read_as(Gemma, embedding_scale=1.0),
    ("gemma", "untied"): NO_HEAD,
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
    ("gemma3", "q and k not normalised"): NOT_NORMALISED,
    ("gemma3", "q and k normalised by w"): replaced(Gemma3, "edits", Qwen3.edits),
    ("gemma3-with-images", "scaling of the full layers lost"): scaling_as("linear", rope._default),
    ("phi", "the whole head turns"): config(rope_parameters=FLAT | {"partial_rotary_factor": 1.0}),
    ("phi", "one after the other"): sequential(Phi),
    ("phi", "no bias on the head"): Refused(replaced(Phi, "head_bias", False), "not used: lm_head.bias"),
    ("phi", "exact gelu"): config(hidden_act="gelu"),
    ("phi-2", "half of the head turns"): config(partial_rotary_factor=0.5),
    ("phi-qk-norm", "RMSNorm"): norms_of("phi", centred=False),
    ("phi-qk-norm", "not normalised"): NOT_NORMALISED,
    ("phi3", "up before gate"): halves_swapped("gate_up_proj"),
    ("phi3-window", "no window"): config(sliding_window=None),
    ("phi3-long", "scores not sharpened"): without_magnitude("longrope"),
    ("phi3-long", "short factors"): scaling_as("longrope", short_factors),
    ("phi3-short", "long factors"): scaling_as("longrope", long_factors),
    ("phi3-called-yarn", "not scaled"): scaling_as("longrope", rope._default),
    ("phi4-mini-old-keys", "the whole head turns"): Refused(config(partial_rotary_factor=1.0), "6 numbers.*8 numbers"),
    ("phi4-mini", "untied"): NO_HEAD,
    ("smollm3", "all layers rotate"): config(no_rope_layers=[1, 1, 1, 1]),
    ("smollm3-interval", "every fourth"): config(no_rope_layer_interval=4),
    ("smollm3-interval", "untied"): NO_HEAD,
    ("smollm3-untied-theta", "theta 1e4"): config(rope_theta=10000.0),
    ("stablelm", "RMSNorm"): replaced(StableLM, "new_norm", rms_new_norm),
    ("stablelm", "half of the head turns"): config(rope_parameters=FLAT | {"partial_rotary_factor": 0.5}),
    ("stablelm-2", "no biases"): Refused(config(use_qkv_bias=False), "not used: .*k_proj.bias"),
    ("stablelm-12b", "one after the other"): Refused(
        config(use_parallel_residual=False), "post_attention_layernorm.weight is missing"
    ),
    ("stablelm-12b", "sequential with one norm"): sequential(StableLM),
    ("stablelm-12b", "one weight for all heads"): one_weight_for_all_heads,
    ("stablelm-12b", "RMSNorm"): norms_of("stablelm", centred=False),
    ("stablelm-epoch", "norm_eps ignored"): config(norm_eps=1e-5),
    ("stablelm-epoch", "rope_pct ignored"): config(rope_pct=None, partial_rotary_factor=1.0),
    ("starcoder2", "no window"): config(sliding_window=None),
    ("starcoder2", "exact gelu"): config(hidden_act="gelu"),
    ("starcoder2", "untied"): NO_HEAD,
    ("starcoder2", "RMSNorm"): replaced(Starcoder2, "new_norm", rms_new_norm),
    ("granite", "embeddings not scaled"): config(embedding_multiplier=1.0),
    ("granite", "blocks add wholly"): config(residual_multiplier=1.0),
    ("granite", "scores by the head's size"): config(attention_multiplier=8**-0.5),
    ("granite", "logits not scaled"): config(logits_scaling=1.0),
    ("granite-biases", "eps of the stream, not of the stream over r"): read_as(Granite, eps=1e-2),
    ("olmo2", "norms before"): norms_before,
    ("olmo2", "each head by itself"): norms_of("olmo2", head_dim=8),
    ("olmo2", "not normalised"): NOT_NORMALISED,
    ("olmoe", "shares renormalised"): shares(True),
    ("olmoe", "each head by itself"): norms_of("olmoe", head_dim=16),
    ("olmoe-clipped", "no clip"): config(clip_qkv=None),
    ("olmoe-clipped", "clipped before the norms"): replaced(Olmoe, "edits", clip_first),
    ("olmoe-clipped", "shares as they are"): config(norm_topk_prob=False),
    ("smollm3-window", "no window"): config(use_sliding_window=False, layer_types=None),
    # what every layout of q, k and v, and every published name, is taken for
    ("llama", "k and v swapped"): names_swapped("k_proj", "v_proj"),
    ("llama", "transposed, as GPT-2's"): Refused(called_with(loading.Loader, "linear", transposed=True), "has shape"),
    ("llama-buffers", "read"): Refused(NOTHING_IGNORED, "not used: .*rotary_emb.inv_freq"),
    ("llama-biases", "no bias in the feed-forward"): Refused(config(mlp_bias=False), "not used: .*mlp"),
    ("aquila", "as many key-value heads"): Refused(config(num_key_value_heads=None), "k_proj.weight has shape"),
    ("internlm", "another base"): config(rotary={"base": 500, "type": "origin"}),
    ("internlm-20b", "biases"): Refused(config(bias=True), "q_proj.bias is missing"),
    ("phi", "pairs are neighbours"): NEIGHBOURS,
    ("phi", "the last part of a head turns"): the_last_part_turns,
    ("phi", "no biases"): Refused(read_as(Phi, qkv_bias=False), "not used: .*_proj.bias"),
    ("phi-qk-norm", "no biases of the norms"): without_head_biases("phi"),
    ("phi-qk-norm", "eps 1e-5"): config(layer_norm_eps=1e-5),
    ("phi-msft", "k and v swapped"): keys_and_values_swapped("Wqkv", 64),
    ("phi-msft", "rows are per head"): per_head("Wqkv", 4, 1, 16),
    ("phi-mixformer", "k and v swapped"): keys_and_values_swapped("Wqkv", 64),
    ("phi3", "k and v swapped"): keys_and_values_swapped("qkv_proj", 16),
    ("phi3", "rows are per key-value head"): per_head("qkv_proj", 2, 3, 8),
    ("stablelm", "pairs are neighbours"): NEIGHBOURS,
    ("stablelm", "the last part of a head turns"): the_last_part_turns,
    ("stablelm-12b", "eps 1e-5"): config(layer_norm_eps=1e-5),
    ("starcoder2", "no biases"): Refused(config(use_bias=False), "not used: .*bias"),
    ("starcoder2", "as many key-value heads"): Refused(config(num_key_value_heads=6), "k_proj.weight has shape"),
    ("starcoder2", "Conv1D, as GPT-2's"): stored_as("o_proj.weight", Tensor.t),
    ("starcoder2-unbiased", "eps 1e-5"): config(norm_epsilon=1e-5),
    ("qwen3-biases", "eps 1e-6"): config(rms_norm_eps=1e-6),
    ("qwen3-moe-some-dense", "mlp_only_layers ignored"): Refused(config(mlp_only_layers=[]), "mlp.gate.weight is"),
    ("qwen2-yarn-tied", "untied"): NO_HEAD,
    # Gemma
    ("gemma", "head_dim is hidden / heads"): Refused(config(head_dim=8), "q_proj.weight has shape"),
    ("gemma", "sqrt(hidden) not rounded"): By(embeddings_apart, read_as(Gemma, embedding_scale=48**0.5)),
    ("gemma2", "sqrt(hidden) not rounded"): By(embeddings_apart, read_as(Gemma, embedding_scale=48**0.5)),
    ("gemma3", "sqrt(hidden) not rounded"): By(embeddings_apart, read_as(Gemma, embedding_scale=48**0.5)),
    ("gemma", "1 + w rounded"): By(last_norms_apart, rounded_norms),
    ("gemma2", "scores capped behind the mask"): capped_behind_the_mask(5.0),
    ("gemma2", "scores capped before they are scaled"): read_as(Gemma2, scores_cap=lambda m: m.scores_cap * m.scale),
    ("gemma2-no-types", "untied where the key is absent"): NO_HEAD,
    ("gemma3", "untied"): NO_HEAD,
    ("gemma3", "q and k normalised behind the rotation"): edits_behind_the_rotation,
    ("gemma3-with-images", "the image model is read"): Refused(NOTHING_IGNORED, "not used: .*vision_tower"),
    # rotations
    ("llama-linear", "type unread"): Refused(rope_key_unread("type"), "default parameter factor"),
    ("llama-dynamic-beyond", "rope_type unread"): Refused(rope_key_unread("rope_type"), "default parameter factor"),
    ("llama-dynamic-beyond", "by the ratio alone"): widened(lambda made, length: made.factor * length / made.trained),
    ("llama-dynamic-beyond", "for the prompt alone"): By(drawn_apart, called_with(llama, "Rope", by_prompt=True)),
    ("llama-llama3", "low_freq_factor 1"): rope_params("llama3", low_freq_factor=1.0),
    ("llama-llama3", "high_freq_factor 8"): rope_params("llama3", high_freq_factor=8.0),
    ("llama-llama3", "the trained length for the original"): original_is_trained("llama3"),
    ("llama-yarn", "scores sharpened by the root"): magnitude("yarn", math.sqrt),
    ("llama-yarn", "not truncated"): rope_params("yarn", truncate=False),
    ("llama-yarn-tuned", "the trained length for the original"): original_is_trained("yarn"),
    ("llama-yarn-tuned", "beta_fast 32"): rope_params("yarn", beta_fast=None),
    ("llama-yarn-tuned", "beta_slow 1"): rope_params("yarn", beta_slow=None),
    ("llama-yarn-tuned", "mscale unread"): rope_params("yarn", mscale=None),
    ("llama-yarn-tuned", "mscale_all_dim is mscale"): rope_params("yarn", mscale_all_dim=0.7),
    ("llama-yarn-tuned", "truncated"): rope_params("yarn", truncate=None),
    ("llama-yarn-factor", "attention_factor unread"): rope_params("yarn", attention_factor=None),
    ("phi3-short", "scores not sharpened in the short regime"): without_magnitude("longrope"),
    ("phi3-long", "scores sharpened by the root"): magnitude("longrope", math.sqrt),
    ("phi3-long", "factors for the prompt alone"): By(drawn_apart, called_with(llama, "Rope", by_prompt=True)),
    ("phi3-called-su", "not scaled"): scaling_as("longrope", rope._default),
    ("smollm3", "the layers without positions rotate alone"): read_as(
        SmolLM3, ropes=lambda m: [m.ropes[0] if r is None else None for r in m.ropes]
    ),
}


@pytest.mark.parametrize(("name", "quirk"), MUTATIONS)
def test_it_shows(name: str, quirk: str, shape: Callable[[str], Shape], tmp_path: Path, monkeypatch: Patch) -> None:
    check_it_shows(shape(name), MUTATIONS[name, quirk], tmp_path, monkeypatch)
