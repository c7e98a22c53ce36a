"""One version, wherever it is spelled."""

from __future__ import annotations

import tomllib
from pathlib import Path

import octavo
from octavo_engine import serve


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    assert octavo.__version__ == serve.VERSION == project["version"]
