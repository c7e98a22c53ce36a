"""`octavo bench serve`: what it sends when, what it makes of what comes, and the whole command against our server."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from xml.etree import ElementTree

import anyio
import pytest

from octavo import cli
from octavo.errors import InvalidOption
from octavo.load.drive import Load, Overhead, Record, Spec, drive
from octavo.load.exchange import Target
from octavo.load.summary import latencies, percentile, summary, table
from octavo.load.workload import Shape, arrivals, prompts, shapes, source
from octavo.testing import Reply
from tests.openai.live import live, toy


def test_arrivals_are_poisson_and_of_their_seed() -> None:
    due = arrivals(4000, 8.0, 1)
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert statistics.mean(gaps) == pytest.approx(1 / 8, rel=0.05)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 8, rel=0.08)  # an exponential's mean is its deviation
    assert due == arrivals(4000, 8.0, 1) != arrivals(4000, 8.0, 2)
    assert set(arrivals(5, math.inf, 0)) == {0.0}


def test_lengths_are_sharegpt_s_on_the_mean() -> None:
    found = shapes("sharegpt", 20_000, 1 << 20, 1 << 20, 0)
    assert statistics.mean(one.input for one in found) == pytest.approx(161, rel=0.05)
    assert statistics.mean(one.output for one in found) == pytest.approx(338, rel=0.05)
    cut = shapes("sharegpt", 1000, 64, 32, 0)
    assert max(one.input for one in cut) == 64
    assert max(one.output for one in cut) == 32
    assert shapes("fixed:5,7", 2, 99, 6, 0) == [Shape(5, 6)] * 2


def test_lengths_and_prompts_come_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"input_tokens": 5, "output_tokens": 6}\n{"prompt": "Say it.", "output_tokens": 3}\n')
    assert sorted(shapes(str(lines), 4, 99, 99, 0), key=str) == [Shape(2, 3, "Say it.")] * 2 + [Shape(5, 6)] * 2
    sharegpt = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "q" * 42}, {"from": "gpt", "value": "a" * 84}, {"from": "human", "value": "x"}]
    sharegpt.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}, {}]))
    assert shapes(str(sharegpt), 2, 99, 99, 0) == [Shape(10, 20, "q" * 42)] * 2
    for text in ("[]", '{"prompt": "no length"}', "nonsense"):
        lines.write_text(text)
        with pytest.raises(InvalidOption, match="--lengths"):
            shapes(str(lines), 1, 9, 9, 0)
    with pytest.raises(InvalidOption, match="fixed:IN,OUT"):
        shapes("fixed:3", 1, 9, 9, 0)


def test_prompts_have_their_length_and_share_no_beginning(tmp_path: Path) -> None:
    made = prompts([Shape(30, 1)] * 20, source(None, 0), 4.0)
    assert {len(text) for text in made} == {120}
    assert len({text[:3] for text in made}) == 20
    file = tmp_path / "text"
    file.write_text("0123456789" * 200)
    assert len(source(str(file), 0)(5000)) == 5000
    file.write_text("short")
    with pytest.raises(InvalidOption, match="1,000"):
        source(str(file), 0)


LOAD = Load(
    [
        Record(0.0, 0.1, [0.2, 0.25, 0.35], 0.4, 5, 3),  # 200 ms since it was due, 100 since it was sent
        Record(1.0, 1.0, [1.4, 1.5], 1.5, 5, 5),  # pieces of several tokens
        Record(1.0, 1.0, [], 1.2, error="503 no"),
    ],
    2.0,
    Overhead([0.1, 0.0, 0.0], [0.001], 0.25),
)


def test_latencies_count_from_when_a_request_was_due() -> None:
    due, sent = latencies(LOAD.records, from_due=True), latencies(LOAD.records, from_due=False)
    assert due["ttft"] == pytest.approx([200, 400])
    assert sent["ttft"] == pytest.approx([100, 400])
    assert due["e2e"] == pytest.approx([400, 500])
    assert due["itl"] == pytest.approx([50, 100, 100])
    assert due["tpot"] == pytest.approx([75, 25])
    assert [percentile([3, 1, 2], share) for share in (0, 50, 75, 100)] == [1, 2, 2.5, 3]


def test_goodput_counts_what_keeps_every_limit() -> None:
    def good(**slo: float) -> float:
        return float(summary(LOAD, slo, from_due=True)["goodput_requests_per_second"])

    assert good(ttft=500) == 1.0
    assert good(ttft=300) == 0.5
    assert good(ttft=500, tpot=50) == 0.5
    assert good(ttft=300, tpot=50) == 0.0
    made = summary(LOAD, {}, from_due=True)
    assert (made["completed"], made["failed"], made["output_tokens_per_second"]) == (2, {"503 no": 1}, 4.0)
    assert made["most_in_flight"] == 2
    assert "failed 1 times: 503 no" in table(made)
    assert "25% of a core" in table(made)


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    with live(toy(lambda request: Reply("word " * 20, delay=0.002)), api_keys=("sesame",)) as server:
        command = ["bench", "serve", "--url", server.url, "--requests", "20", "--rate", "100", "--api-key", "sesame"]
        command += ["--lengths", "fixed:32,8", "--slo", "ttft:60000,tpot:60000", "--out", str(out)]
        assert cli.main([*command, "--picture", str(picture)]) == 0
        asked = server.engine.requests[2:]  # two told how long the tokens are
    assert len(asked) == 20
    assert {(request.params.max_tokens, request.params.ignore_eos) for request in asked} == {(8, True)}
    said = capsys.readouterr().out
    assert "20 of 20 requests" in said
    assert "goodput within ttft 60000 ms, tpot 60000 ms" in said
    assert "sesame" not in out.read_text()
    written = json.loads(out.read_text())
    assert written["summary"]["output_tokens"] == 160
    assert all(len(record["chunks"]) == 8 for record in written["requests"])
    assert [record["due"] for record in written["requests"]] == arrivals(20, 100.0, 0)
    assert len(ElementTree.fromstring(picture.read_text()).findall(".//{*}polyline")) == 5


def test_an_open_load_is_not_held_up_by_slow_answers() -> None:
    """While the first answer takes for ever the others are sent at their times: a closed loop would wait for it."""

    def script(request: object) -> Reply:
        return Reply("a", hang=True) if not server.engine.requests[1:] else Reply("a b")

    async def main(url: str) -> Load:
        body = b'{"model":"toy","stream":true,"messages":[{"role":"user","content":"x"}]}'
        specs = [Spec(i * 0.02, "/v1/chat/completions", body) for i in range(5)]
        return await drive(Target.at(url), specs, None, 1.0)

    with live(toy(script)) as server:
        load = anyio.run(main, server.url)
    first, *rest = load.records
    assert "no end within" in (first.error or "")
    assert [record.error for record in rest] == [None] * 4
    assert max(record.end for record in rest) < first.end
    assert len(load.overhead.late) == 5


def test_what_went_wrong_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    engine = toy({}, max_model_len=16)
    with live(engine) as server:
        base = ["bench", "serve", "--url", server.url, "--requests", "2"]
        for arguments, expected in (
            (["--model", "other"], "404"),
            (["--slo", "ttft:fast"], "--slo='ttft:fast'"),
            (["--rate", "0"], "--rate=0"),
            (["--lengths", "/nowhere"], "/nowhere"),
            (["--url", "ftp://x"], "--url='ftp://x'"),
            (["--url", "127.0.0.1:9"], "a server that answers"),
        ):
            assert cli.main([*base, *arguments]) == 1
            assert expected in capsys.readouterr().err
