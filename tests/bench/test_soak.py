"""The soak in small: 50 clients for a second, over a scripted engine; and that it notices what goes wrong."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest

from octavo.load.exchange import Target
from octavo.testing import Reply
from tests.bench.soak import soak
from tests.openai.live import live, toy


def scripted(request: Any) -> Reply:
    """Another text for every prompt and length, of as many tokens as were asked for."""
    count = request.params.max_tokens
    return Reply([f"{request.text[-8:]} {i} of {count} " for i in range(count)], delay=0.001)


def run(script: Any) -> dict[str, Any]:
    with live(toy(script)) as server:
        return anyio.run(soak, Target.at(server.url), "toy", 50, 1.0, lambda: {"server": os.getpid()}, 1 / 6)


def test_no_answer_is_lost_doubled_or_changed() -> None:
    result = run(scripted)
    assert (result["wrong"], result["failed"]) == (0, {})
    assert result["complete"]["reader"] > 40
    assert result["complete"]["slow"] + result["left"] > 5
    assert result["gap_ms"]["p50"] > 0
    assert len(result["memory_mb"]["server"]) == 4


@pytest.mark.parametrize("fault", ["lost", "doubled", "broken off"])
def test_a_fault_is_noticed(fault: str) -> None:
    count = 0

    def script(request: Any) -> Reply:
        nonlocal count
        count += 1
        good = scripted(request)
        if count <= 24 or count % 40:  # 24 questions were asked alone
            return good
        pieces = list(good.text)
        if fault == "broken off":
            return Reply(pieces[:2], fail="failed")
        return Reply(pieces[:2] + pieces[3:] + pieces[-1:] if fault == "lost" else pieces[:2] + pieces[1:-1])

    result = run(script)
    assert (sum(result["failed"].values()) if fault == "broken off" else result["wrong"]) > 0
