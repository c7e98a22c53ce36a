"""The emulator under test, run in each order of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.simt import ORDERS, load_emulated


@pytest.fixture(params=ORDERS)
def emulator(request: pytest.FixtureRequest) -> Iterator[Any]:
    library = load_emulated("simt_tests")
    library.simt_configure(request.param, 1, 1)
    yield library
    library.simt_configure("ascending", 1, 1)
