"""The command `octavo`: what it prints where, its exit status, and a chat on a real terminal."""

from __future__ import annotations

import io
import os
import pty
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from octavo import cli
from octavo.errors import ModelError
from octavo.testing import Reply, ScriptedEngine
from octavo.wire import Progress
from tests.sdk.terminal import HEIGHT, WIDTH, Terminal

SCRIPT = {"Hello": "Hi there, you!", "refused": Reply(fail="invalid_request", message="first line\nsecond line")}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """A scripted engine in the place of the one that `octavo chat` would spawn."""
    made = ScriptedEngine(SCRIPT)
    monkeypatch.setattr(cli, "AsyncClient", lambda model, options, on_progress, share: made.client())
    return made


def test_answers_a_prompt_on_stdout_and_keeps_the_rest_on_stderr(engine, capsys):
    assert cli.main(["chat", "model", "--prompt", "Hello"]) == 0
    out, err = capsys.readouterr()
    assert out == "Hi there, you!\n"
    assert "[3 tokens" in err


def test_reads_the_prompt_from_a_pipe(engine, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115, closed with the test
    with sys.stdin:
        assert cli.main(["chat", "model"]) == 1
    assert "--prompt" in capsys.readouterr().err


def test_what_an_encoding_lacks_ends_no_answer(engine, monkeypatch):
    engine._script = {"Hello": "Hello 你好 😀"}
    written = io.BytesIO()
    with io.TextIOWrapper(written, "latin-1") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["chat", "model", "--prompt", "Hello"]) == 0
        out.flush()
        assert written.getvalue() == b"Hello ?? ?\n"


def test_a_prompt_that_is_no_text_is_refused(engine, monkeypatch, capsys):
    with io.TextIOWrapper(io.BytesIO(b"na\xefve\n"), "utf-8") as said:
        monkeypatch.setattr(sys, "stdin", said)
        assert cli.main(["chat", "model"]) == 1
    assert "--prompt='-': a text; what stands on standard input is none: 'utf-8' codec" in capsys.readouterr().err


def test_system_message_and_sampling_reach_the_request(engine):
    assert cli.main(["chat", "m", "--prompt", "Hello", "--system", "Be kind", "--max-tokens", "9", "--seed", "4"]) == 0
    (request,) = engine.requests
    assert [(turn.role, turn.content) for turn in request.messages] == [("system", "Be kind"), ("user", "Hello")]
    assert (request.params.max_tokens, request.params.seed, request.params.temperature) == (9, 4, 0.0)


def test_engine_options_are_flags(monkeypatch):
    seen = []

    def client(model, options, on_progress, share):
        seen.append(options)
        raise ModelError("no such model")

    monkeypatch.setattr(cli, "AsyncClient", client)
    flags = ["--dtype", "float32", "--max-model-len", "64", "--no-enable-prefix-caching", "--ready-timeout", "1.5"]
    assert cli.main(["chat", "m", "--prompt", "x", *flags]) == 1
    (options,) = seen
    assert (options.model, options.dtype, options.max_model_len) == ("m", "float32", 64)
    assert (options.enable_prefix_caching, options.ready_timeout) == (False, 1.5)


def test_an_error_is_one_line_and_status_1(engine, capsys):
    assert cli.main(["chat", "model", "--prompt", "refused"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "octavo: first line"


def test_a_wrong_option_names_the_field(engine, capsys):
    assert cli.main(["chat", "model", "--prompt", "Hello", "--page-size", "17"]) == 1
    assert "page_size=17" in capsys.readouterr().err


def test_max_queued_is_of_requests(engine, capsys):
    assert cli.main(["chat", "model", "--prompt", "Hello", "--max-queued", "0"]) == 1
    assert "max_queued_requests=0" in capsys.readouterr().err


def test_engine_is_started_with_the_same_arguments(monkeypatch):
    called = []

    def execv(path, arguments):
        called.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        cli.main(["engine", "--model", "m", "--bind", "ipc:///tmp/x"])
    assert called == [[sys.executable, "-m", "octavo_engine", "--model", "m", "--bind", "ipc:///tmp/x"]]


CHAT = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from octavo import cli
from octavo.testing import Reply, ScriptedEngine
def answer(request):
    turns = [turn.content for turn in request.messages]
    if turns[-1] == "slow":
        return Reply(["endless "] * 1000, delay=0.05)
    return "**bold**\\n\\n\\x1b]0;title\\x07\\n\\n- item" if turns[-1] == "mark" else "|".join(turns) + "!"
engine = ScriptedEngine(answer)
cli.AsyncClient = lambda model, options, on_progress, share: engine.client()
sys.exit(cli.main(["chat", "model", "--prompt", "one", *sys.argv[1:]]))
"""


@contextmanager
def chatting(*arguments: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (HEIGHT, WIDTH))
    command, env = [sys.executable, "-c", CHAT, *arguments], {**os.environ, "TERM": "xterm-256color"}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=env)
    os.close(theirs)
    try:
        yield Terminal(ours), child
    finally:
        child.kill()
        child.wait()
        os.close(ours)


@pytest.mark.parametrize("arguments", [(), ("--plain",)], ids=["rich", "plain"])
def test_chat_on_a_terminal_keeps_its_history_and_obeys_ctrl_c_and_ctrl_d(arguments: tuple[str, ...]) -> None:
    enter = "\n" if arguments else "\r"
    with chatting(*arguments) as (terminal, child):
        terminal.expect("one!")
        terminal.prompt()
        terminal.type("two" + enter, expect="one|one!|two!")
        terminal.prompt()
        terminal.type("slow" + enter, expect="endless endless")
        terminal.type("\x03", expect="tokens/s]")
        terminal.prompt()
        terminal.type("\x03", expect="(Ctrl-D ends the chat)")
        terminal.prompt()
        terminal.type("/undo" + enter, expect="taken back: slow")
        terminal.prompt()
        terminal.type("three" + enter, expect="two!|three!")
        terminal.prompt()
        terminal.type("\x04")
        assert child.wait(10) == 0


def test_a_rich_terminal_shows_markdown_and_edits_lines() -> None:
    with chatting() as (terminal, _):
        terminal.prompt()
        terminal.type("mark\r", expect=" • item")
        terminal.prompt()
        assert "**" not in terminal.text
        assert terminal.bold("bold")
        assert "]0;title" in terminal.text  # seen, not obeyed
        terminal.type("first\x1b\rsecond\r", expect="second!")  # Alt-Enter breaks the line
        terminal.prompt()
        terminal.type("\x1b[A", expect="> first\n")  # the lines before, to be edited
        terminal.type(" and last\r", expect="second and last!")
        terminal.prompt()


def test_loading_is_told_in_bytes_and_capturing_in_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    bar = cli._LoadBar()
    for progress in (Progress("load", 1, 5_000_000), Progress("capture", 0, 12), Progress("capture", 12, 12)):
        bar.update(progress)
    assert capsys.readouterr().err.splitlines()[1:] == ["load: 5 MB", "capture: 12 graphs"]


def test_serve_looks_at_its_options_before_it_loads_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["--port", port], f"--port={port}: one that is free at --host 127.0.0.1: "),
            (["--host", "999.1.1.1"], "--host='999.1.1.1': an address of this machine: "),
            (["--api-key", ""], "--api-key='': not empty"),
            (["--served-model-name", ""], "--served-model-name='': not empty"),
            (["--drain-timeout", "nan"], "--drain-timeout=nan: "),
            (["--keep-alive", "0"], "--keep-alive=0.0: "),
            (["--max-body-bytes", "-5"], "--max-body-bytes=-5: "),
            (["--response-store-bytes", "-1"], "--response-store-bytes=-1: "),
            (["--engine-restarts", "-1"], "--engine-restarts=-1: a whole number >= 0"),
            (["--tool-parser", "klingon"], "tool_parser='klingon': 'auto' or one of"),
            (["--reasoning-parser", "klingon"], "reasoning_parser='klingon': 'auto', 'none' or one of"),
            (["--allowed-origins", "https://a.com"], "--allowed-origins='https://a.com': a JSON list of strings"),
            (["--allowed-methods", "[1]"], "--allowed-methods='[1]': a JSON list of strings"),
            (["--allowed-origins", '["a.com"]'], "allowed_origins=('a.com',): a list of origins such as"),
        ):
            assert cli.main(["serve", "model", *arguments]) == 1
            assert capsys.readouterr().err.startswith(f"octavo: {said}")


def test_serve_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "starlette" or "octavo.openai" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert cli.main(["serve", "model", "--port", "0"]) == 1
    assert 'pip install "octavo[server]"' in capsys.readouterr().err
