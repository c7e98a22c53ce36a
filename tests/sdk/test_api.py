"""What `import octavo` gives and costs."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import octavo
import octavo.errors

HEAVY = ("torch", "numpy", "transformers", "asyncio", "trio", "zmq", "logging", "subprocess", "octavo_engine")


def test_all_is_sorted_and_pinned() -> None:
    assert octavo.__all__ == sorted(octavo.__all__)
    assert octavo.__all__ == [
        "AccessDenied",
        "AsyncClient",
        "BeamParams",
        "Choice",
        "ClientClosed",
        "Completion",
        "CompletionChoice",
        "Delta",
        "DeviceLost",
        "Draft",
        "Embeddings",
        "EngineDead",
        "EngineError",
        "EngineNotInstalled",
        "EngineOptions",
        "EngineStartError",
        "EngineUnresponsive",
        "Grammar",
        "InvalidGrammar",
        "InvalidOption",
        "InvalidRequest",
        "JsonObject",
        "JsonSchema",
        "LoraError",
        "Message",
        "ModelError",
        "NGram",
        "OctavoError",
        "OutOfMemory",
        "Overloaded",
        "Progress",
        "PromptTooLong",
        "ProtocolMismatch",
        "Quantization",
        "Regex",
        "RequestFailed",
        "RequestTimeout",
        "SamplingParams",
        "Score",
        "Stream",
        "TokenLogprob",
        "Usage",
    ]
    assert all(hasattr(octavo, name) for name in octavo.__all__)


def test_every_error_derives_from_one_and_is_in_the_tree() -> None:
    for name in octavo.errors.__all__:
        kind = getattr(octavo.errors, name)
        assert issubclass(kind, octavo.OctavoError)
        assert name in (octavo.errors.__doc__ or "")
        assert getattr(octavo, name) is kind


@pytest.mark.parametrize(
    "error",
    [octavo.InvalidOption("a", 1, "b"), octavo.EngineDead("x", -9, "tail"), octavo.RequestTimeout("x", "queue")],
)
def test_errors_can_be_pickled(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert type(copy) is type(error)


def test_the_import_is_light() -> None:
    code = f"import sys, octavo; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
