"""Real engines for the end-to-end tests: a tiny random model for what needs many runs, SmolLM2 for what needs sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import real_model, tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer float32 LLaMA of 128 tokens, without a tokenizer."""
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2() -> str:
    return str(real_model())


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked anyio run on asyncio, unless they are parametrised over the three loops themselves."""
    return "asyncio"
