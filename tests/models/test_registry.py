"""The registry, README's table that is made of it, and that no family is in it without its tests."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from statistics import median
from typing import Any

import gguf
import pytest

from octavo_engine.models.llama import Llama
from octavo_engine.models.registry import ARCHITECTURES, FAMILIES, Family, find_model
from octavo_engine.weights.gguf_architectures import GGUF_ARCHITECTURES
from tests.models import test_cuda, test_families, test_gguf_older, test_oracles, test_rounded_families
from tests.models.families import LENGTHS
from tests.models.family_oracles import FAMILIES as CASES
from tests.models.family_oracles import published_config
from tests.models.gguf_converter import CONVERSIONS
from tests.support.checkpoints import ROOT
from tests.support.readme import architectures, readme_table

MODELS = ROOT / "engine_proc" / "octavo_engine" / "models"
# Cases that are not in the table, but among what test_oracles runs.
RECORDED = {folder.name for folder in test_oracles.FOLDERS}
ON_CUDA = {*test_cuda.EVERY, *RECORDED}
ON_CUDA_IN_FEWER_BITS = {*test_cuda.IN_FEWER_BITS, *test_cuda.MODELS, *RECORDED}
GGUF = {name: case.architecture for name, case in CONVERSIONS.items()}
GGUF |= {name: arch for name, (arch, *_) in test_gguf_older.FILES.items()} | test_gguf_older.RECORDED


@functools.cache
def configs() -> dict[str, dict[str, Any]]:
    """What config.json says of every case, of the table (test_families, test_rounded_families) and recorded."""
    recorded = {folder.name: json.loads((folder / "config.json").read_text()) for folder in test_oracles.FOLDERS}
    return {name: published_config(name) for name in CASES} | recorded


def untested(family: Family) -> Iterator[str]:
    """What no case shows of a family."""
    mine = {}
    for name, config in configs().items():
        named = set(config.get("architectures") or []) & set(family.architectures)
        if named or (not config.get("architectures") and config["model_type"] in family.types):
            mine[name] = config
    published = {name for config in mine.values() for name in config.get("architectures") or []}
    yield from (f"the architecture {name}" for name in family.architectures if name not in published)
    types = {config["model_type"] for config in mine.values()}
    yield from (f"the model_type {name}" for name in family.types if name not in types)
    files = {gguf.MODEL_ARCH_NAMES[arch] for name, arch in GGUF.items() if name in mine}
    yield from (f"the GGUF architecture {name}" for name in family.gguf if name not in files)
    if not mine.keys() & ON_CUDA:
        yield "CUDA's ops"
    if not mine.keys() & ON_CUDA_IN_FEWER_BITS:
        yield "CUDA's ops in fewer bits"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models)
def test_every_name_of_every_family_is_tested(family: Family) -> None:
    assert list(untested(family)) == []
    assert all(find_model({"model_type": name}) is family.builder for name in family.types)


@pytest.mark.parametrize(
    "test",
    [
        test_families.test_logits_and_greedy_tokens_equal_transformers,
        test_families.test_a_missing_or_added_tensor_is_an_error,
        test_rounded_families.test_bfloat16,
        test_rounded_families.test_fewer_bits,
    ],
    ids=lambda test: test.__name__,
)
def test_every_row_of_the_table_is_run(test: Any) -> None:
    assert ("name", CASES) in [mark.args for mark in test.pytestmark]


def test_a_family_without_tests_would_be_seen() -> None:
    new = Family("New", Llama, ("NewForCausalLM",), ("new",), ("new",))
    kinds = ["the architecture NewForCausalLM", "the model_type new", "the GGUF architecture new"]
    assert list(untested(new)) == [*kinds, "CUDA's ops", "CUDA's ops in fewer bits"]
    llama = next(family for family in FAMILIES if "LlamaForCausalLM" in family.architectures)
    more = llama._replace(architectures=(*llama.architectures, "NewForCausalLM"), gguf=(*llama.gguf, "new"))
    assert list(untested(more)) == [kinds[0], kinds[2]]


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_longer_than_windows_and_original_lengths(name: str) -> None:
    lengths = CASES[name].lengths
    assert set(LENGTHS) <= set(lengths)
    limits = list(_limits(configs()[name].get("text_config", configs()[name])))
    assert all(1 < limit < max(lengths) for limit in limits)


def _limits(config: dict[str, Any]) -> Iterator[int]:
    """Lengths from which on a window or a scaled rotation shows."""
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        yield config["sliding_window"]
    for params in (config.get("rope_parameters"), config.get("rope_scaling")):
        nested = [each for each in (params or {}).values() if isinstance(each, dict)]
        for each in nested or [params or {}]:
            kind, top = each.get("rope_type") or each.get("type"), config.get("original_max_position_embeddings")
            if kind in ("yarn", "llama3", "longrope", "su"):
                yield each.get("original_max_position_embeddings") or top


def test_dynamic_rotation_is_tested_beyond_the_trained_length() -> None:
    """What scales from there on, and not before."""
    dynamic = {name: config for name, config in configs().items() if name in CASES and _is_dynamic(config)}
    beyond = [name for name in dynamic if dynamic[name]["max_position_embeddings"] < max(CASES[name].lengths)]
    assert {find_model(config) for config in dynamic.values()} == {find_model(dynamic[name]) for name in beyond}
    assert beyond


def _is_dynamic(config: dict[str, Any]) -> bool:
    tables = [config.get(key) or {} for key in ("rope_parameters", "rope_scaling", "rotary")]
    return any("dynamic" in (table.get("rope_type"), table.get("type")) for table in tables)


def test_readme_has_the_table_of_the_registry() -> None:
    assert readme_table() == architectures(), "run python -m tests.support.readme"


def test_every_name_is_of_one_family() -> None:
    names = [name for family in FAMILIES for name in (*family.architectures, *family.types)]
    assert len(names) == len(set(names))
    assert {name for family in FAMILIES for name in family.gguf} == set(GGUF_ARCHITECTURES)
    assert len(ARCHITECTURES) == sum(len(family.architectures) for family in FAMILIES)


def test_a_model_is_a_short_file() -> None:
    """By all lines, docstring, imports and blanks included, of each file that builds a family."""
    builders = {family.builder.__module__.split(".")[-1] for family in FAMILIES}
    lines = [len((MODELS / f"{name}.py").read_text().splitlines()) for name in builders]
    assert median(lines) < 80
