"""The registry, and README's table that is made of it."""

from __future__ import annotations

from statistics import median

from octavo_engine.models.registry import ARCHITECTURES, FAMILIES
from octavo_engine.weights.gguf_architectures import GGUF_ARCHITECTURES
from tests.models.family_oracles import FAMILIES as CASES
from tests.support.checkpoints import ROOT
from tests.support.readme import architectures, readme_table

MODELS = ROOT / "engine_proc" / "octavo_engine" / "models"


def test_readme_has_the_table_of_the_registry() -> None:
    assert readme_table() == architectures(), "run python -m tests.support.readme"


def test_every_name_is_of_one_family() -> None:
    names = [name for family in FAMILIES for name in (*family.architectures, *family.types)]
    assert len(names) == len(set(names))
    assert {name for family in FAMILIES for name in family.gguf} == set(GGUF_ARCHITECTURES)
    assert len(ARCHITECTURES) == sum(len(family.architectures) for family in FAMILIES)


def test_a_model_is_a_short_file() -> None:
    builders = {family.builder.__module__.split(".")[-1] for family in FAMILIES}
    lines = [len((MODELS / f"{name}.py").read_text().splitlines()) for name in builders]
    assert median(lines) < 80


def test_the_table_of_tests_covers_every_family() -> None:
    tested = {case.config().__class__.__name__.removesuffix("Config").lower() for case in CASES.values()}
    assert {"llama", "mixtral", "gemma3text", "cohere", "bloom", "mpt"} <= tested
