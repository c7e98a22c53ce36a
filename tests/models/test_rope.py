"""Rotation tables against transformers' own, and what is refused."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from octavo_engine.layers.alibi import alibi_slopes
from octavo_engine.layers.config import ConfigReader, UnsupportedModel
from octavo_engine.layers.rope import OwnRows, Regimes, Rope, RotationTable

BASE = {"max_position_embeddings": 256, "hidden_size": 64, "num_attention_heads": 2, "rope_theta": 20000.0}
LONG = {"short_factor": [1.0 + i / 16 for i in range(16)], "long_factor": [1.0 + i for i in range(16)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}
# scaling, lengths of which each table is the longest, top-level keys
TABLES: list[tuple[dict[str, Any] | None, list[int], dict[str, Any]]] = [
    (None, [256], {}),
    ({"rope_type": "default"}, [256], {}),
    ({"rope_type": "linear", "factor": 3.0}, [768], {}),
    ({"rope_type": "dynamic", "factor": 1.0}, [256], {}),
    ({"rope_type": "dynamic", "factor": 2.0}, [256], {}),
    ({"rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3}, [256], {}),
    ({"rope_type": "llama3", **LLAMA3}, [256], {"original_max_position_embeddings": 32}),
    (YARN, [1024], {}),
    (YARN | {"original_max_position_embeddings": 64, "beta_fast": 16}, [256], {}),
    (YARN | {"attention_factor": 1.3, "truncate": False}, [1024], {}),
    (YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}, [1024], {}),
    (LONGROPE, [64, 256], {}),
    ({"rope_type": "longrope", "factor": 9.0, **LONG}, [32, 256], {"original_max_position_embeddings": 32}),
]


def tables(config: dict[str, Any], max_model_len: int | None = None) -> tuple[torch.Tensor, ...]:
    """[rows, 32] of each regime."""
    rope = Rope(ConfigReader(config), 32, max_model_len)
    table = RotationTable(rope, torch.device("cpu"), 0)
    table.reach(rope.length)
    return table.values.split(rope.length)


@pytest.mark.parametrize("spelling", ["rope_scaling", "type", "rope_parameters"])
@pytest.mark.parametrize(("scaling", "lengths", "more"), TABLES)
def test_tables_equal_transformers(
    scaling: dict[str, Any] | None, lengths: list[int], more: dict[str, Any], spelling: str
) -> None:
    config: dict[str, Any] = {**BASE, **more}
    if spelling == "rope_parameters":
        config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **(scaling or {})}
    elif scaling is not None:
        config["rope_scaling"] = dict(scaling)
        if spelling == "type":
            config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    rope = Rope(ConfigReader(config), 32)
    assert rope.lengths == tuple(lengths)
    by_length = scaling is not None and scaling["rope_type"] == "dynamic" and scaling["factor"] > 1
    assert (rope.regimes is not None) == (len(lengths) > 1 or by_length)
    made = tables(config)
    for length, table in zip(lengths, made, strict=True):
        assert len(table) == rope.max_position
        theirs = LlamaRotaryEmbedding(LlamaConfig(**BASE, **more, rope_scaling=dict(scaling) if scaling else None))
        cos, sin = theirs(torch.empty(1), torch.arange(length)[None])
        rows = min(length, len(table))
        torch.testing.assert_close(table[:rows, :16], cos[0, :rows, :16], atol=2e-5, rtol=0)
        torch.testing.assert_close(table[:rows, 16:], sin[0, :rows, :16], atol=2e-5, rtol=0)


@pytest.mark.parametrize("length", [257, 300, 1000])
def test_rows_of_a_length_that_has_no_table_equal_transformers(length: int) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    rope = Rope(ConfigReader({**BASE, "rope_scaling": scaling}), 32)
    theirs = LlamaRotaryEmbedding(LlamaConfig(**BASE, rope_scaling=dict(scaling)))
    cos, sin = theirs(torch.empty(1), torch.arange(length)[None])
    table = RotationTable(rope, torch.device("cpu"), 16)
    assert len(table.values) == 1024 + 16
    at = [0, 1, 200, 256, length]
    rows = table.own_rows([OwnRows(0, length, *ends) for ends in pairwise(at)])
    torch.testing.assert_close(rows, torch.cat((cos[0, :, :16], sin[0, :, :16]), dim=1), atol=2e-5, rtol=0)
    assert torch.equal(rows[254:257], table.own_rows([OwnRows(0, length, 254, 257)]))


@pytest.mark.parametrize(
    ("regimes", "of", "expected"),
    [
        # One table up to the trained length of 100, then rotations that last until a tenth has come on top.
        (Regimes((100,), 900, growth=0.1), (1, 100), (100, 110)),
        (Regimes((100,), 900, growth=0.1), (100, 111), (111, 122)),
        (Regimes((100,), 900, growth=0.1), (60, 123), (123, 135)),
        (Regimes((100,), 900, growth=0.1), (130, 130), (130, 143)),
        (Regimes((100,), 900, growth=0.1), (130, 143), (130, 143)),
        (Regimes((100,), 900, growth=0.1), (130, 144), (144, 158)),
        (Regimes((100,), 900, growth=0.0), (130, 144), (144, 144)),
        (Regimes((100,), 900, growth=0.0), (30, 99), (100, 100)),
        (Regimes((100, 900), 900), (30, 100), (100, 100)),
        (Regimes((100, 900), 900), (30, 101), (900, sys.maxsize)),
        (Regimes((100, 200, 400), 300, by_prompt=True), (100, 290), (100, sys.maxsize)),
        (Regimes((100, 200, 400), 300, by_prompt=True), (201, 290), (400, sys.maxsize)),
    ],
)
def test_regimes(regimes: Regimes, of: tuple[int, int], expected: tuple[int, int]) -> None:
    """of: tokens of the prompt, tokens in all."""
    assert regimes.choose(*of) == expected


def test_su_is_longrope() -> None:
    old = {**LONGROPE, "type": "su"}
    del old["rope_type"]
    new, su = (torch.cat(tables({**BASE, "rope_scaling": scaling})) for scaling in (LONGROPE, old))
    assert torch.equal(new, su)


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "factor": 4.0}, LONGROPE])
def test_the_longest_sequence_to_serve_changes_no_shorter_one(scaling: dict[str, Any]) -> None:
    config = {**BASE, "rope_scaling": scaling}
    every = tables(config, 600)
    for longest in (50, 200, 256, 300):
        for one, other in zip(tables(config, longest), every, strict=False):
            assert torch.equal(one[:longest], other[:longest])


def test_rows_are_the_same_in_whatever_steps_they_are_made() -> None:
    rope = Rope(ConfigReader({**BASE, "max_position_embeddings": 1500, "rope_scaling": LONGROPE}), 32)
    at_once, in_steps = (RotationTable(rope, torch.device("cpu"), 0) for _ in range(2))
    at_once.reach(1500)
    for length in (1, 2, 300, 777, 777, 5000):
        in_steps.reach(length)
        ready = min(length, 1500)
        for one, other in zip(at_once.values.split(1500), in_steps.values.split(1500), strict=True):
            assert torch.equal(one[:ready], other[:ready])


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
        ({"type": "dynamic", "factor": 4.0}, None, 1024),
        ({"type": "dynamic", "factor": 4.0}, 7000, 1024),
        ({"type": "dynamic", "factor": 1.0}, None, 256),
        ({"type": "dynamic", "factor": 1.0}, 100, 256),
        ({"type": "dynamic", "factor": 1.0}, 700, 700),
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
        tables({**BASE, "rope_scaling": scaling})


def test_alibi_slopes() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # Twelve heads: the eight above, then every second of sixteen.
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    )
