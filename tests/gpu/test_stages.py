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
from tests.gpu.stages import ROOT, Stage, run_stage


def python(code: str, limit: float = 30.0, *, name: str = "stage", needed: bool = False) -> Stage:
    return Stage(name, [sys.executable, "-c", code], limit, needed)


def test_a_stage_that_works(tmp_path: Path) -> None:
    outcome = run_stage(python("print('done')"), tmp_path / "log")
    assert (outcome.status, outcome.tail) == ("ok", ())
    assert (tmp_path / "log").read_text() == "done\n"


def test_a_stage_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    outcome = run_stage(python("print(*range(40), sep='\\n'); raise SystemExit(3)"), tmp_path / "log")
    assert outcome.status == "failed"
    assert outcome.tail == tuple(map(str, range(25, 40)))


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


def test_figures_of_a_benchmark_that_was_cut_short_are_kept(tmp_path: Path) -> None:
    (tmp_path / "attention.jsonl").write_text(json.dumps({"share": 0.5}) + "\n")
    assert figures(tmp_path) == {"attention": [{"share": 0.5}]}


def test_the_limits_fit_in_the_whole(tmp_path: Path) -> None:
    todo = stages(tmp_path)
    assert sum(stage.limit for stage in todo) <= MOST_SECONDS
    assert [stage.name for stage in todo if stage.needed] == ["configure", "build"]


def test_every_test_marked_gpu_is_run(tmp_path: Path) -> None:
    """By itself or by a fixture of its folder."""
    (command,) = (stage.command for stage in stages(tmp_path) if stage.name == "tests")
    given = {ROOT / word for word in command if word.startswith("tests/")}
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
