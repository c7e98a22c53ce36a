"""A pytest plugin: a process that has lost its device ends, or every test after that would fail for it.

With pytest-xdist another worker takes over; the test that did it is told as that at which its worker crashed.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

__all__ = ["pytest_addoption", "pytest_runtest_makereport"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lost-device", type=Path, required=True, help="a file for the tests that lost it, and how")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            with open(item.config.getoption("--lost-device"), "a") as file:
                file.write(f"{item.nodeid}: {str(error).splitlines()[0]}\n{report.longreprtext}\n")
            os._exit(3)
    return report
