"""Mutations: for each thing that implementers of the recent families get wrong, getting it wrong shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo_engine.models.cohere import Cohere
from octavo_engine.models.cohere2 import Cohere2
from octavo_engine.models.ernie4_5 import Ernie45
from octavo_engine.models.exaone4 import Exaone4
from octavo_engine.models.glm import Glm, Glm4
from octavo_engine.models.internlm import InternLM3
from octavo_engine.models.llama import Llama
from octavo_engine.models.mistral import Mistral
from octavo_engine.models.olmo import Olmo
from octavo_engine.models.olmo3 import Olmo3
from octavo_engine.models.seed_oss import SeedOss
from tests.models.mutations import (
    Mutation,
    Patch,
    check_it_shows,
    config,
    halves_swapped,
    norms_before,
    norms_of,
    one_weight_for_all_heads,
    read_as,
    replaced,
    rms_new_norm,
    sandwich_norms_behind_the_addition,
    sequential,
)


def full_windows(model: Any) -> list[int]:
    return [0] * len(model.windows)


def every_layer_rotates(model: Any) -> list[Any]:
    return [model.ropes[0]] * len(model.ropes)


MUTATIONS: dict[tuple[str, str], Mutation] = {
    ("cohere", "pairs lie half a head apart"): replaced(Cohere, "interleaved", False),
    ("cohere", "one after the other"): sequential(Cohere),
    ("cohere", "logits not scaled"): config(logit_scale=1.0),
    ("cohere", "RMSNorm"): replaced(Cohere, "new_norm", rms_new_norm),
    ("cohere-plus", "not normalised"): replaced(Cohere, "edits", Llama.edits),
    ("cohere-plus", "RMSNorm"): norms_of("cohere", centred=False),
    ("cohere-plus", "one weight for all heads"): one_weight_for_all_heads,
    ("cohere2", "no window"): read_as(Cohere2, windows=full_windows),
    ("cohere2", "full layers rotate too"): read_as(Cohere2, ropes=every_layer_rotates),
    ("ernie", "pairs lie half a head apart"): replaced(Ernie45, "interleaved", False),
    ("ernie-plain", "untied where the key is absent"): config(tie_word_embeddings=False),
    ("exaone4", "full layers rotate too"): read_as(Exaone4, ropes=every_layer_rotates),
    ("exaone4", "no window"): read_as(Exaone4, windows=full_windows),
    ("exaone4", "norms before"): norms_before,
    ("exaone4-1b", "nothing rotates without windows"): read_as(Exaone4, ropes=lambda m: [m.ropes[0], None]),
    ("exaone4-1b", "q and k not normalised"): replaced(Exaone4, "edits", Llama.edits),
    ("glm", "pairs lie half a head apart"): replaced(Glm, "interleaved", False),
    ("glm", "whole heads rotate"): replaced(Glm, "rotary_dim", lambda self, config: self.heads.dim),
    ("glm", "up before gate"): halves_swapped("gate_up_proj"),
    ("glm4", "norms behind the addition"): sandwich_norms_behind_the_addition,
    ("glm4", "the first generation's block"): replaced(Glm4, "block", Glm.block),
    ("internlm3", "no bias but q's, k's and v's"): read_as(InternLM3, out_bias=False, mlp_bias=False),
    ("minicpm", "embeddings not scaled"): config(scale_emb=1.0),
    ("minicpm", "blocks not scaled"): config(scale_depth=2**0.5),
    ("minicpm", "logits not scaled"): config(dim_model_base=48),
    ("ministral", "all layers slide"): read_as(Mistral, windows=[24] * 4),
    ("olmo", "RMSNorm"): replaced(Olmo, "new_norm", rms_new_norm),
    ("olmo-clipped", "no clip"): config(clip_qkv=None),
    ("olmo3", "sliding layers stretched too"): read_as(Olmo3, ropes=lambda m: [m.ropes[1]] * 4),
    ("olmo3", "no window"): read_as(Olmo3, windows=full_windows),
    ("seed-oss", "a bias on o as on q"): read_as(SeedOss, out_bias=True),
    ("seed-oss-out-bias", "no bias on o"): read_as(SeedOss, out_bias=False),
}


@pytest.mark.parametrize(("name", "quirk"), MUTATIONS)
def test_it_shows(name: str, quirk: str, published: Callable[[str], Path], tmp_path: Path, monkeypatch: Patch) -> None:
    check_it_shows(name, MUTATIONS[name, quirk], published(name), tmp_path, monkeypatch)
