"""Logits processors as they are imported; what they do in an engine: tests/e2e/test_processors.py."""

from __future__ import annotations

import pytest

from octavo_engine.execution.processors import CannotImport, Context, load_processors

HERE = "tests.support.processors"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{HERE}:no_such_factory", "AttributeError"),
        (f"{HERE}:raising", "KeyError: 'at the start'"),
        (f"{HERE}:nothing", "the factory must return a callable, got NoneType"),
        ("/nowhere/x.py:factory", "FileNotFoundError"),
    ],
)
def test_what_can_t_be_imported(path: str, message: str) -> None:
    with pytest.raises(CannotImport, match=message):
        load_processors({"x": path}, Context(128, (), lambda text: [], lambda ids: ""))
