"""Mutations: for each thing that implementers of LLaMA's relatives get wrong, getting it wrong shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from octavo_engine.layers import loading, rope
from octavo_engine.models import internlm2
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
from tests.models.mutations import (
    NEIGHBOURS,
    Mutation,
    Patch,
    called_with,
    check_it_shows,
    clip_first,
    config,
    edits_behind_the_rotation,
    halves_swapped,
    llama3_without_a_blend,
    long_factors,
    names_swapped,
    norms_before,
    norms_of,
    one_more_expert,
    one_weight_for_all_heads,
    read_as,
    replaced,
    rms_new_norm,
    rows_as_stored,
    sandwich_norms_behind_the_addition,
    scaling_as,
    sequential,
    shares,
    short_factors,
    ungated,
    without_magnitude,
)

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
    ("qwen2-moe-some-dense", "every layer has experts"): config(decoder_sparse_step=1),
    ("qwen3", "q and k not normalised"): replaced(Qwen3, "edits", Llama.edits),
    ("qwen3", "q and k normalised behind the rotation"): edits_behind_the_rotation,
    ("qwen3", "q and k normalised over their whole widths"): norms_of("llama", head_dim=None),
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


@pytest.mark.parametrize(("name", "quirk"), MUTATIONS)
def test_it_shows(name: str, quirk: str, published: Callable[[str], Path], tmp_path: Path, monkeypatch: Patch) -> None:
    check_it_shows(name, MUTATIONS[name, quirk], published(name), tmp_path, monkeypatch)
