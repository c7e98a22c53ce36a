"""Rotation tables against transformers' own, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from octavo_engine.layers.alibi import alibi_slopes
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.rope import Rope

BASE = {"max_position_embeddings": 256, "hidden_size": 64, "num_attention_heads": 2, "rope_theta": 20000.0}
LONG = {"short_factor": [1.0 + i / 16 for i in range(16)], "long_factor": [1.0 + i for i in range(16)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# scaling, length served, top-level keys
TABLES: list[tuple[dict[str, Any] | None, int | None, dict[str, Any]]] = [
    (None, None, {}),
    ({"rope_type": "default"}, 100, {}),
    ({"rope_type": "linear", "factor": 3.0}, None, {}),
    ({"rope_type": "dynamic", "factor": 2.0}, None, {}),
    ({"rope_type": "dynamic", "factor": 2.0}, 400, {}),
    ({"rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3}, None, {}),
    ({"rope_type": "llama3", **LLAMA3}, None, {"original_max_position_embeddings": 32}),
    ({"rope_type": "yarn", "factor": 4.0}, None, {}),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16}, None, {}),
    ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "truncate": False}, None, {}),
    ({"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0}, None, {}),
    ({"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}, 64, {}),
    ({"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}, 65, {}),
    ({"rope_type": "longrope", "factor": 9.0, **LONG}, 256, {"original_max_position_embeddings": 32}),
]


@pytest.mark.parametrize("spelling", ["rope_scaling", "type", "rope_parameters"])
@pytest.mark.parametrize(("scaling", "length", "more"), TABLES)
def test_tables_equal_transformers(
    scaling: dict[str, Any] | None, length: int | None, more: dict[str, Any], spelling: str
) -> None:
    config: dict[str, Any] = {**BASE, **more}
    if spelling == "rope_parameters":
        config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **(scaling or {})}
    elif scaling is not None:
        config["rope_scaling"] = dict(scaling)
        if spelling == "type":
            config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    rope = Rope(ConfigReader(config), 32, length)
    table = rope.table()
    assert table.shape == (length or rope.max_position, 32)

    theirs = LlamaRotaryEmbedding(LlamaConfig(**BASE, **more, rope_scaling=dict(scaling) if scaling else None))
    cos, sin = theirs(torch.empty(1), torch.arange(len(table))[None])
    torch.testing.assert_close(table[:, :16], cos[0, :, :16], atol=2e-5, rtol=0)
    torch.testing.assert_close(table[:, 16:], sin[0, :, :16], atol=2e-5, rtol=0)


def test_su_is_longrope() -> None:
    new = {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}
    old = {**new, "type": "su"}
    del old["rope_type"]
    tables = [Rope(ConfigReader({**BASE, "rope_scaling": scaling}), 32).table() for scaling in (new, old)]
    assert torch.equal(*tables)


@pytest.mark.parametrize(
    ("scaling", "max_model_len", "expected"),
    [
        ({"type": "default"}, None, 256),
        ({"type": "default"}, 512, 256),
        ({"type": "linear", "factor": 4.0}, None, 1024),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, None, 256),
        ({"type": "yarn", "factor": 4.0}, None, 1024),
        ({"type": "llama3", **LLAMA3}, None, 256),
        ({"type": "longrope", "original_max_position_embeddings": 64, **LONG}, None, 256),
        ({"type": "dynamic", "factor": 4.0}, None, 256),
        ({"type": "dynamic", "factor": 4.0}, 100, 256),
        ({"type": "dynamic", "factor": 4.0}, 700, 700),
        ({"type": "dynamic", "factor": 4.0}, 7000, 1024),
    ],
)
def test_max_position(scaling: dict[str, Any], max_model_len: int | None, expected: int) -> None:
    assert Rope(ConfigReader({**BASE, "rope_scaling": scaling}), 32, max_model_len).max_position == expected


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "spiral"}, "rope_type='spiral' .* allowed: default, dynamic"),
        ({"type": "linear"}, "factor=None"),
        ({"type": "linear", "factor": 2.0, "gain": 3}, "linear parameter gain=3"),
        ({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 16}, "short_factor='1 numbers'.*16"),
        ({"full_attention": {"rope_type": "default"}}, "one flat table"),
    ],
)
def test_what_is_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        Rope(ConfigReader({**BASE, "rope_scaling": scaling}), 32).table()


def test_alibi_slopes() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # Twelve heads: the eight above, then every second of sixteen.
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    )
