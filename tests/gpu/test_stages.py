"""The driver of `make gpu`, where there is no GPU: limits, what is kept of a stage that was cut short, the one line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import MOST_SECONDS, SMALL, environment, figures, main, run, stages
from tests.gpu.stages import ROOT, Outcome, Stage, run_stage
from tests.support import stand_in


def python(code: str, limit: float = 30.0, *, name: str = "stage", needed: bool = False) -> Stage:
    return Stage(name, [sys.executable, "-c", code], limit, needed)


def test_a_stage_that_works(tmp_path: Path) -> None:
    outcome = run_stage(python("print('done')"), tmp_path / "log")
    assert (outcome.status, outcome.tail) == ("ok", ("done",))
    assert (tmp_path / "log").read_text() == "done\n"


def test_a_stage_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    outcome = run_stage(python("print(*range(60), sep='\\n'); raise SystemExit(3)"), tmp_path / "log")
    assert outcome.status == "failed"
    assert outcome.tail == tuple(map(str, range(20, 60)))


def test_at_its_limit_a_stage_and_all_that_it_started_are_ended(tmp_path: Path) -> None:
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    outcome = run_stage(python(code, limit=3.0), tmp_path / "log")
    assert outcome.status == "cut short"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(200):  # its new parent has to collect it
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_follows_a_needed_stage_is_not_run(tmp_path: Path) -> None:
    todo = [python("pass", name="a"), python("raise SystemExit(1)", name="b", needed=True), python("pass", name="c")]
    assert [(o.name, o.status) for o in run(todo, tmp_path, os.environ)] == [("a", "ok"), ("b", "failed")]


def test_what_is_known_is_kept_after_every_stage(tmp_path: Path) -> None:
    kept: list[list[str]] = []
    todo = [python("pass", name="a"), python("raise SystemExit(1)", name="b"), python("pass", name="c")]
    run(todo, tmp_path, os.environ, lambda outcomes: kept.append([f"{o.name} {o.status}" for o in outcomes]))
    assert kept == [["a ok"], ["a ok", "b failed"], ["a ok", "b failed", "c ok"]]


def test_it_is_written_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [python("print('done')", name="tests"), python("raise SystemExit(1)", name="lora"), python("", name="never")]
    monkeypatch.setattr("tests.gpu.__main__.stages", lambda folder: todo)
    monkeypatch.setattr("tests.bench.machine.RESULTS", tmp_path / "results")
    with stand_in.device():
        assert main(["--skip", "never", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["device"]["device"] == "a stand-in"
    assert [(stage["name"], stage["status"]) for stage in found["stages"]] == [("tests", "ok"), ("lora", "failed")]
    assert (tmp_path / "out" / "gpu.log").read_text() == "==== tests\ndone\n\n==== lora\n\n"


def test_time_that_is_left_is_for_who_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gpu.__main__.MOST_SECONDS", 20.0)
    given: list[float] = []
    monkeypatch.setattr(
        "tests.gpu.__main__.run_stage",
        lambda stage, log, environment: given.append(round(stage.limit)) or Outcome(stage.name, "ok", 0.0, ""),
    )
    run([python("", 3.0), python("", 4.0), python("", 5.0)], tmp_path, os.environ)
    assert given == [11, 15, 20]


def test_a_process_that_lost_its_device_ends(tmp_path: Path) -> None:
    """The tests behind it run in the next one, or not at all."""
    (tmp_path / "test_it.py").write_text(
        "import torch\n"
        "def lost(device=None): raise RuntimeError('CUDA error: an illegal memory access\\nmore')\n"
        "def test_well(): pass\n"
        "def test_bad():\n"
        "    torch.cuda.is_available, torch.cuda.synchronize = lambda: True, lost\n"
        "    assert 1 == 2\n"
        "def test_later(): pass\n"
    )
    options = [
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.gpu.lost",
        "--lost-device",
        str(tmp_path / "lost"),
        "-c",
        "/dev/null",
    ]
    stage = Stage("tests", [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_it.py")], 60)
    assert run_stage(stage, tmp_path / "log", environment()).status == "failed"
    first, *rest = (tmp_path / "lost").read_text().splitlines()
    assert first.endswith("test_it.py::test_bad: CUDA error: an illegal memory access")
    assert any("assert 1 == 2" in line for line in rest)


def test_figures_of_a_benchmark_that_was_cut_short_are_kept(tmp_path: Path) -> None:
    (tmp_path / "attention.jsonl").write_text(json.dumps({"share": 0.5}) + "\n")
    assert figures(tmp_path) == {"attention": [{"share": 0.5}]}


def test_the_limits_fit_in_the_whole(tmp_path: Path) -> None:
    todo = stages(tmp_path)
    assert sum(stage.limit for stage in todo) <= MOST_SECONDS
    assert [stage.name for stage in todo if stage.needed] == ["configure", "build"]


def test_every_test_marked_gpu_is_run(tmp_path: Path) -> None:
    """By itself or by a fixture of its folder."""
    commands = [stage.command for stage in stages(tmp_path) if stage.name in ("tests", "served")]
    given = {ROOT / word for command in commands for word in command if word.startswith("tests/")}
    marked = ("pytest.mark" + ".gpu", "cuda" + "_ops", "primitive" + "(")
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if any(m in path.read_text() for m in marked)]
    assert len(found) > 10
    assert [path for path in found if path not in given and path.parent not in given] == []


@pytest.mark.parametrize("more", [[], ["-p", "no:asyncio"]])
def test_settings_of_plugins_that_are_not_there_stop_nothing(tmp_path: Path, more: list[str]) -> None:
    (stage,) = (stage for stage in stages(tmp_path) if stage.name == "tests")
    options = stage.command[: stage.command.index("-m", 3)]
    collected = Stage("tests", [*options, *more, "--collect-only", "tests/gpu/test_stages.py"], 30)
    assert run_stage(collected, tmp_path / "log", environment()).status == "ok"


@pytest.mark.parametrize("word", SMALL.split(" or "))
def test_what_the_sanitizer_runs_exists(word: str) -> None:
    names = [line for path in (ROOT / "tests" / "ops").glob("test_cuda_*.py") for line in path.read_text().splitlines()]
    assert any(line.startswith("def test") and word in line for line in names), word


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("octavo: no CUDA device here")
    assert out.count("\n") == 1
