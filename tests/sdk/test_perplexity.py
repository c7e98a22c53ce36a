"""Perplexity: which token is scored in which window, the arithmetic, and the command, with a scripted engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import octavo
from octavo import cli, wire
from octavo.options import EngineOptions
from octavo.perplexity import Perplexity, perplexity, rise, windows
from octavo.testing import Reply, ScriptedEngine


@given(count=st.integers(0, 300), context=st.integers(2, 40), data=st.data())
def test_every_token_but_the_first_is_scored_once_with_enough_before_it(
    count: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    made = windows(count, context, stride)
    assert [token for window in made for token in range(window.scored, window.end)] == list(range(1, count))
    assert all(window.end - window.begin <= context for window in made)
    assert all(window.scored - window.begin >= context - stride for window in made[1:])


def test_disjoint_windows_leave_out_the_first_token_of_each() -> None:
    made = windows(9, 4, 4)
    assert [(window.begin, window.end, window.scored) for window in made] == [(0, 4, 1), (4, 8, 5)]
    assert windows(1, 4, 2) == windows(0, 4, 2) == []


def scored(*logprobs: float) -> Perplexity:
    return Perplexity(logprobs, 10, 1.0, 4, 2)


def test_perplexity_bits_and_rise() -> None:
    base, worse = scored(-1.0, -2.0, -3.0), scored(-1.5, -2.0, -4.0)
    assert base.perplexity == pytest.approx(math.exp(2))
    assert base.bits_per_byte(4.0) == pytest.approx(2 / math.log(2) / 4)
    found = rise(base, worse)
    assert found.value == pytest.approx(worse.perplexity / base.perplexity - 1)
    # Differences 0.5, 0, 1 have a standard deviation of 0.5.
    assert found.error == pytest.approx((1 + found.value) * 0.5 / math.sqrt(3))
    assert rise(base, base).value == 0
    with pytest.raises(ValueError):
        rise(base, scored(-1.0))


def by_position(request: wire.Generate) -> Reply:
    """Token t has the log probability -t / 10 wherever its window begins; the next one does not matter."""
    assert request.token_ids is not None
    assert (request.params.prompt_logprobs, request.params.max_tokens) == (0, 1)
    return Reply("x", finish_reason="length", prompt_logprobs=[-token / 10 for token in request.token_ids[1:]])


@pytest.mark.anyio
async def test_windows_are_sent_and_their_overlap_is_not_counted(anyio_backend: Any) -> None:
    engine = ScriptedEngine(by_position)
    seen: list[tuple[int, int]] = []
    async with engine.client() as client:
        tokens = await client.tokenize("a b c d e f g h i j")
        made = await perplexity(client, tokens, context=4, stride=2, on_window=lambda *news: seen.append(news))
    assert made.logprobs == pytest.approx([-token / 10 for token in range(1, 10)])
    assert made.nats == pytest.approx(0.5)
    assert sorted(request.token_ids[0] for request in engine.requests if request.token_ids) == [0, 2, 4, 6]
    assert made.tokens_read == 16
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("asked", "field"),
    [({"context": 1}, "context"), ({"context": 64}, "context"), ({"context": 8, "stride": 9}, "stride")],
)
async def test_what_can_not_be_measured(anyio_backend: Any, asked: dict[str, int], field: str) -> None:
    engine = ScriptedEngine(by_position, options=EngineOptions(model="m", max_model_len=64))
    async with engine.client() as client:
        with pytest.raises(octavo.InvalidOption) as caught:
            await perplexity(client, range(100), **asked)
        assert caught.value.field == field
        with pytest.raises(octavo.InvalidOption, match="at least two tokens"):
            await perplexity(client, [5])
        assert (await perplexity(client, range(100))).context == 63  # the default shrinks to what there is


@pytest.mark.anyio
async def test_an_error_ends_it_as_it_is(anyio_backend: Any) -> None:
    async with ScriptedEngine(lambda request: Reply(fail="overloaded", message="full")).client() as client:
        with pytest.raises(octavo.Overloaded, match="full"):
            await perplexity(client, range(100), context=8)
    async with ScriptedEngine(lambda request: Reply("x")).client() as client:
        with pytest.raises(octavo.RequestFailed, match="prompt_logprobs"):
            await perplexity(client, range(100), context=8)


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[EngineOptions]:
    """The options of every engine that the command opened; int8 weights make each token a tenth less likely."""
    seen: list[EngineOptions] = []

    def client(model: str, options: EngineOptions, on_progress: Any, share: bool) -> octavo.AsyncClient:
        seen.append(options)
        loss = 0.1 if options.quantization == "int8" else 0.0

        def answer(request: wire.Generate) -> Reply:
            assert request.token_ids is not None
            return Reply("x", prompt_logprobs=[-1.0 - loss] * (len(request.token_ids) - 1))

        return ScriptedEngine(answer).client()

    monkeypatch.setattr(cli, "AsyncClient", client)
    return seen


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text"
    file.write_text("word " * 100)
    return str(file)


def test_a_table_of_settings(opened: list[EngineOptions], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    compared = ["--compare", "quantization=int8", "quantization=int4:g64,asymmetric kv_cache_dtype=int8 page_size=32"]
    command = ["eval", "perplexity", "m", "--text", text, "--context", "16", "--max-tokens", "50", "--seed", "3"]
    with pytest.raises(SystemExit):  # sampling is none of its options
        cli.main(command)
    capsys.readouterr()
    assert cli.main([*command[:-2], "--dtype", "float32", *compared]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["dtype=float32", "2.7183"], ["quantization=int8", "3.0042"]]
    assert "+10.52% ± 0.00%" in lines[2]
    assert f"{1 / math.log(2) / 5:.4f}" in lines[1]  # five bytes a word
    assert lines[3].startswith(compared[-1])
    assert " 49 " in lines[1]
    assert "context 16, stride 8" in lines[4]
    assert [(o.model, o.dtype, o.quantization, o.kv_cache_dtype) for o in opened] == [
        ("m", "float32", None, "auto"),
        ("m", "float32", "int8", "auto"),
        ("m", "float32", "int4:g64,asymmetric", "int8"),
    ]
    assert opened[2].page_size == 32


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "--text=None"),
        (["--text", "/nowhere"], "/nowhere"),
        (["--compare", "quantisation=int8"], "quantisation=int8"),
        (["--compare", "int8"], "NAME=VALUE"),
        (["--compare", "page_size=17"], "page_size=17"),
        (["--compare", "enable_prefix_caching=maybe"], "enable_prefix_caching='maybe'"),
        (["--quantization", "int5"], "quantization='int5'"),
        (["--context", "16", "--stride", "17"], "stride=17"),
    ],
)
def test_a_wrong_command_is_one_line(
    opened: list[EngineOptions], text: str, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    given = [] if match in ("--text=None", "/nowhere") else ["--text", text]
    assert cli.main(["eval", "perplexity", "m", *given, *arguments]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("octavo: ")
    assert match in last
