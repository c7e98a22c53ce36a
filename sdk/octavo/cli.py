"""The command `octavo`.

octavo chat MODEL [--prompt TEXT] [options]    an answer, or a chat, in the terminal
octavo engine --model MODEL --bind ADDRESS     an engine that several processes join
octavo quantize MODEL OUT --scheme int4        a quantised checkpoint on disk
octavo eval perplexity MODEL --text FILE       how well a model, quantised or not, predicts a text
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskStatus

from octavo.client import AsyncClient, Prompt
from octavo.errors import InvalidOption, OctavoError
from octavo.evaluate import add_arguments, evaluate
from octavo.options import EngineOptions, SamplingParams
from octavo.serving import add_arguments as add_server_arguments
from octavo.serving import options_of as server_options
from octavo.wire import Message, Progress

__all__ = ["main"]

_MODEL = "a local folder, a GGUF file, or a hub id"
_PERPLEXITY = (
    "Perplexity of a text: windows of --context tokens, every --stride tokens, each token scored once by the first "
    "window that holds it. Compare only figures of the same text, model, context and stride."
)
_SAMPLING = {"max_tokens": 512, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, 1 on an error (one line on stderr), 2 on a wrong command line, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["engine"]:
        os.execv(sys.executable, [sys.executable, "-m", "octavo_engine", *arguments[1:]])
    if arguments[:1] == ["quantize"]:
        os.execv(sys.executable, [sys.executable, "-m", "octavo_engine.quantize", *arguments[1:]])
    options = _parser().parse_args(arguments)
    try:
        anyio.run(options.run, options)
    except OctavoError as error:
        return _fail(error)
    except BrokenPipeError:
        # Who read our output has gone, as `head` does; without this the interpreter would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: Exception) -> int:
    lines = [line for line in str(error).splitlines() if line.strip()]
    print(f"octavo: {lines[0] if lines else type(error).__name__}", file=sys.stderr)
    return 1


# ---- the command line ------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octavo", description="An embeddable async LLM engine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="chat | engine | eval | quantize | serve")
    commands.add_parser("engine", help="run an engine that several processes join (octavo engine --help)")
    commands.add_parser("quantize", help="write a quantised checkpoint (octavo quantize --help)")
    chat = commands.add_parser("chat", help="chat with a model in the terminal, or answer one prompt")
    chat.set_defaults(run=_chat)
    chat.add_argument("model", help=_MODEL)
    chat.add_argument("--prompt", metavar="TEXT", help="answer this first; else standard input, if piped")
    chat.add_argument("--system", metavar="TEXT", help="a system message before the chat")
    sampling = chat.add_argument_group("sampling (octavo.SamplingParams)")
    for name, default in _SAMPLING.items():
        sampling.add_argument(_flag(name), type=_number, default=default, metavar="X", help=f"default {default}")
    _add_engine_options(chat)
    server = commands.add_parser("serve", help="answer OpenAI's API over HTTP")
    server.set_defaults(run=_serve)
    server.add_argument("model", help=_MODEL)
    add_server_arguments(server)
    _add_engine_options(server)
    measures = commands.add_parser("eval", help="measure a model's quality").add_subparsers(
        required=True, metavar="perplexity"
    )
    measure = measures.add_parser("perplexity", help="how well a model predicts a text", description=_PERPLEXITY)
    measure.set_defaults(run=_eval)
    measure.add_argument("model", help=_MODEL)
    add_arguments(measure)
    _add_engine_options(measure)
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine (octavo.EngineOptions)")
    for field in msgspec.structs.fields(EngineOptions):
        if field.name in ("model", *_SAMPLING):
            continue
        if field.default_factory is dict:
            engine.add_argument(
                _flag(field.name), type=_pair, action="append", default=[], metavar="NAME=X", help="may be given again"
            )
        elif isinstance(field.default, bool):
            engine.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, default=field.default)
        else:
            convert = str if "str" in str(field.type) else _number
            shown = "decided by the engine" if field.default is None else field.default
            engine.add_argument(
                _flag(field.name), type=convert, default=field.default, metavar="X", help=f"default {shown}"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _number(text: str) -> int | float:
    """Whole where it can be: which of the two a field takes is checked by the options themselves."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _engine_options(options: argparse.Namespace) -> EngineOptions:
    names = {field.name for field in msgspec.structs.fields(EngineOptions)} - set(_SAMPLING)
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    for name, value in values.items():
        if isinstance(value, list):  # of pairs
            values[name] = dict(value)
    return EngineOptions(**values)


# ---- eval ------------------------------------------------------------------------------------------------------


async def _eval(options: argparse.Namespace) -> None:
    @asynccontextmanager
    async def opened(engine: EngineOptions) -> AsyncIterator[AsyncClient]:
        bar = _LoadBar()
        async with AsyncClient(engine.model, engine, on_progress=bar.update) as client:
            bar.close()
            yield client

    await evaluate(options, _engine_options(options), opened)


async def _serve(options: argparse.Namespace) -> None:
    try:
        from octavo.openai.serve import serve
    except ImportError as error:
        raise OctavoError(f'octavo serve needs {error.name}: pip install "octavo[server]"') from error
    engine, server = _engine_options(options), server_options(options)
    bar = _LoadBar()
    async with AsyncClient(engine.model, engine, on_progress=bar.update, share=server.workers > 1) as client:
        bar.close()
        await serve(client, server)


# ---- the chat --------------------------------------------------------------------------------------------------


async def _chat(options: argparse.Namespace) -> None:
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    prompt = options.prompt
    if prompt is None and not interactive:
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise InvalidOption("--prompt", "", "a text, or give one on standard input")
    engine = _engine_options(options)
    params = SamplingParams(**{name: getattr(options, name) for name in _SAMPLING})
    bar = _LoadBar()
    async with AsyncClient(engine.model, engine, on_progress=bar.update) as client:
        bar.close()
        history = [Message("system", options.system)] if options.system else []
        if interactive:
            print("Ctrl-C stops an answer, Ctrl-D ends the chat.", file=sys.stderr)
        async for said in _turns(prompt, interactive):
            history.append(Message("user", said))
            # A model without a chat template completes text; it knows no turns.
            answer = await _answer(client, history if client.ready.has_chat_template else said, params)
            history.append(Message("assistant", answer))


async def _turns(prompt: str | None, interactive: bool) -> AsyncIterator[str]:
    if prompt is not None:
        if interactive:
            print(f"> {prompt}")
        yield prompt
    while interactive:
        line = await _read_line("> ")
        if line is None:
            print()
            return
        if line.strip():
            yield line.strip()


async def _read_line(mark: str) -> str | None:
    """A line from the terminal, "" at Ctrl-C, None at Ctrl-D. The event loop goes on meanwhile."""
    line: str | None = ""
    async with _interruptible():
        print(mark, end="", flush=True)
        # A terminal hands out one line a read, so nothing stays behind in Python's buffer.
        await anyio.wait_readable(sys.stdin)
        line = sys.stdin.readline() or None
    if line == "":
        print("\n(Ctrl-D ends the chat)", file=sys.stderr)
    return line


async def _answer(client: AsyncClient, prompt: Prompt, params: SamplingParams) -> str:
    """Stream one answer to stdout, its figures to stderr. Ctrl-C stops the answer and keeps what came."""
    pieces: list[str] = []
    meter = _Meter()
    async with _interruptible():
        async for delta in client.stream(prompt, params):
            meter.count(len(delta.token_ids))
            pieces.append(delta.text)
            print(delta.text, end="", flush=True)
    print(flush=True)
    print(meter.summary(), file=sys.stderr)
    return "".join(pieces)


@asynccontextmanager
async def _interruptible() -> AsyncIterator[None]:
    """Ctrl-C ends the block quietly. Its errors come out as they are, not in a task group's wrapping."""
    failure: Exception | None = None

    async def watch(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as interrupts:
            task_status.started()
            async for _ in interrupts:
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        await tasks.start(watch, tasks.cancel_scope)
        try:
            yield
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Meter:
    """Tokens and times of one answer."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = self.last = 0.0
        self.first_tokens = self.tokens = 0

    def count(self, tokens: int) -> None:
        if not tokens:
            return
        self.last = time.perf_counter()
        if not self.tokens:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens

    def summary(self) -> str:
        if not self.tokens:
            return "[no tokens]"
        text = f"[{self.tokens} tokens, the first after {self.first - self.started:.2f} s"
        if self.tokens > self.first_tokens:
            text += f", {(self.tokens - self.first_tokens) / (self.last - self.first):.1f} tokens/s"
        return text + "]"


class _LoadBar:
    """What the engine says while it starts: a bar on a terminal, a line a stage elsewhere. All on stderr."""

    WIDTH = 32

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.live = sys.stderr.isatty()
        self.stage = ""
        self._line(f"starting the engine{'' if self.live else ' ...'}")

    def update(self, progress: Progress) -> None:
        """The client's on_progress."""
        share = min(1.0, progress.done / progress.total) if progress.total else 0.0
        whole = f"{progress.total} graphs" if progress.stage == "capture" else f"{progress.total / 1e6:,.0f} MB"
        if self.live:
            full = round(share * self.WIDTH)
            bar = "█" * full + "░" * (self.WIDTH - full)
            self._line(f"{progress.stage:8} {bar} {share:4.0%} of {whole} {progress.text}"[:110])
        elif progress.stage != self.stage:
            self._line(f"{progress.stage}: {whole}")
        self.stage = progress.stage

    def close(self) -> None:
        """The engine is ready."""
        self._line(f"ready after {time.perf_counter() - self.started:.1f} s", last=True)

    def _line(self, text: str, last: bool = False) -> None:
        if self.live:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
