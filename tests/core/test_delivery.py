"""Several tokens of one step: each is delivered as if it had come alone."""

from __future__ import annotations

import pytest

from octavo import wire
from octavo.options import SamplingParams
from octavo_engine.delivery import Live
from octavo_engine.scheduling.sequence import Request
from octavo_engine.text import Text
from tests.core.loop import Letters

FIRST = 0x4E00  # the letter of token 0


def deliver(output: str, reason: str, **params: object) -> tuple[list[wire.Delta], Live]:
    """What is sent of a step that drew all of `output`."""
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    live = Live(b"client", wire.Generate(1, sampling, token_ids=[65]), 0.0)
    request = Request(1, [65], sampling, frozenset([2]), 0, 0.0)
    live.admit(request, Text(Letters(), eos_token_ids=[2]))
    (sequence,) = request.sequences
    sequence.output = [ord(letter) - FIRST for letter in output]
    sequence.finish_reason = reason  # type: ignore[assignment]
    made = [live.delta(sequence, token, None, len(output) - i) for i, token in enumerate(sequence.output, 1)]
    return [entry[0] for entry in made if entry is not None], live


def test_the_reason_is_told_with_the_last_one() -> None:
    deltas, live = deliver("上下丌", "length")
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [("上", None), ("下", None), ("丌", "length")]
    assert live.open_choices == 0
    assert live.usage(1.0).completion_tokens == 3


@pytest.mark.parametrize("reason", ["length", None])
def test_nothing_comes_behind_a_stop_string(reason: str) -> None:
    deltas, live = deliver("上下丌不", reason, stop="下丌")
    assert "".join(delta.text for delta in deltas) == "上"
    assert [delta.token_ids for delta in deltas] == [(10,), (11,), (12,)]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "下丌")
    assert live.open_choices == 0
    assert live.ends == [("stop", "下丌")]
    assert live.usage(1.0).completion_tokens == 3


@pytest.mark.parametrize(
    ("messages", "params", "shown"),
    [
        ([wire.Message("user", "a")], {}, "上"),
        ([wire.Message("user", "a")], {"stop": "丌不"}, "上"),
        ([wire.Message("user", "a")], {"ignore_eos": True}, "上下丌不"),
        (None, {}, "上下丌不"),  # a text is no chat
    ],
)
def test_what_the_chat_s_format_stops_at(
    messages: list[wire.Message] | None, params: dict[str, object], shown: str
) -> None:
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    prompt = None if messages else [65]
    live = Live(b"client", wire.Generate(1, sampling, token_ids=prompt, messages=messages), 0.0)
    request = Request(1, [65], sampling, frozenset([2]), 0, 0.0)
    live.admit(request, Text(Letters(), eos_token_ids=[2], chat_stop=("下丌",)))
    (sequence,) = request.sequences
    sequence.output = [ord(letter) - FIRST for letter in "上下丌不"]
    made = [live.delta(sequence, token, None) for token in sequence.output]
    assert "".join(entry[0].text for entry in made if entry is not None) == shown
    stops = [entry[1] for entry in made if entry is not None and entry[1] is not None]
    assert stops == (["下丌"] if shown == "上" else [])
