"""The command `octavo`.

octavo chat MODEL [--prompt TEXT] [options]    an answer, or a chat, in the terminal
octavo serve MODEL [--port 8000] [options]     OpenAI's API over HTTP
octavo engine --model MODEL --bind ADDRESS     an engine that several processes join
octavo keys FOLDER [NAME ...]                  keys, for an engine that is joined over tcp
octavo quantize MODEL OUT --scheme int4        a quantised checkpoint on disk
octavo bench serve --url URL --rate 4          a load on a server, and the latencies it shows
octavo eval perplexity MODEL --text FILE       how well a model, quantised or not, predicts a text

chat and serve take --connect ADDRESS in place of a model, to join an engine that runs already.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from octavo.chat import add_arguments as add_chat_arguments
from octavo.chat import answer_once, chat
from octavo.client import AsyncClient
from octavo.errors import InvalidOption, OctavoError
from octavo.evaluate import add_arguments, evaluate
from octavo.joining import Joined, joined_of
from octavo.joining import add_arguments as add_joining_arguments
from octavo.keys import add_arguments as add_key_arguments
from octavo.keys import make_keys
from octavo.load import add_arguments as add_load_arguments
from octavo.load import options_of as load_options
from octavo.options import EngineOptions, SamplingParams
from octavo.serving import add_arguments as add_server_arguments
from octavo.serving import options_of as server_options
from octavo.wire import Progress

__all__ = ["main"]

_MODEL = "a local folder, a GGUF file, or a hub id"
_PERPLEXITY = (
    "Perplexity of a text: windows of --context tokens, every --stride tokens, each token scored once by the first "
    "window that holds it. Compare only figures of the same text, model, context and stride."
)
_LOAD = (
    "Requests at random times (Poisson) with realistic lengths, sent when they are due whatever the server does, and "
    "the times to first token, between tokens and to the end that they saw. Works on any server of OpenAI's API."
)
_KEYS = (
    "Pairs of CURVE keys as ZeroMQ's certificates: NAME.key, to be given to the other side, and NAME.key_secret, which "
    "stays where it is used; only their owner can read them. With the folder of both: octavo engine --bind "
    "tcp://0.0.0.0:5555 --keys FOLDER lets each client in whose NAME.key is there."
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal's encoding lacks ends nothing
        sys.stdout.reconfigure(errors="replace")
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
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="bench | chat | engine | eval | keys | quantize | serve"
    )
    commands.add_parser("engine", help="run an engine that several processes join (octavo engine --help)")
    pairs = commands.add_parser("keys", help="make keys for an engine that is joined over tcp", description=_KEYS)
    pairs.set_defaults(run=_keys)
    add_key_arguments(pairs)
    commands.add_parser("quantize", help="write a quantised checkpoint (octavo quantize --help)")
    talk = commands.add_parser("chat", help="chat with a model in the terminal, or answer one prompt")
    talk.set_defaults(run=_chat)
    talk.add_argument("model", nargs="?", default="", help=_MODEL)
    add_chat_arguments(talk)
    add_joining_arguments(talk)
    sampling = talk.add_argument_group("sampling (octavo.SamplingParams)")
    for name, default in _SAMPLING.items():
        sampling.add_argument(_flag(name), type=number, default=default, metavar="X", help=f"default {default}")
    _add_engine_options(talk)
    server = commands.add_parser("serve", help="answer OpenAI's API over HTTP")
    server.set_defaults(run=_serve)
    server.add_argument("model", nargs="?", default="", help=_MODEL)
    add_server_arguments(server)
    add_joining_arguments(server)
    _add_engine_options(server)
    benches = commands.add_parser("bench", help="measure how fast a server answers").add_subparsers(
        required=True, metavar="serve"
    )
    bench = benches.add_parser("serve", help="a load on any server of OpenAI's API", description=_LOAD)
    bench.set_defaults(run=_bench)
    add_load_arguments(bench)
    measures = commands.add_parser("eval", help="measure a model's quality").add_subparsers(
        required=True, metavar="perplexity"
    )
    measure = measures.add_parser("perplexity", help="how well a model predicts a text", description=_PERPLEXITY)
    measure.set_defaults(run=_eval)
    measure.add_argument("model", help=_MODEL)
    add_arguments(measure)
    _add_engine_options(measure)
    return parser


# Flags that would be short for two options alike.
_ALSO = {"max_queued_requests": ["--max-queued"]}


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
            convert = str if "str" in str(field.type) else number
            shown = "decided by the engine" if field.default is None else field.default
            engine.add_argument(
                _flag(field.name),
                *_ALSO.get(field.name, ()),
                type=convert,
                default=field.default,
                metavar="X",
                help=f"default {shown}",
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def number(text: str) -> int | float:
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


@asynccontextmanager
async def _opened(
    engine: EngineOptions, joined: Joined | None = None, share: bool = False
) -> AsyncIterator[AsyncClient]:
    """A client, of an engine of its own or a joined one, with a bar until that is ready."""
    if joined is not None:
        bar = _LoadBar(f"joining {joined.address}")
        opened = await joined.connect(bar.update)
    else:
        bar = _LoadBar()
        opened = AsyncClient(engine.model, engine, on_progress=bar.update, share=share)
    async with opened as client:
        bar.close()
        yield client


# ---- eval ------------------------------------------------------------------------------------------------------


async def _eval(options: argparse.Namespace) -> None:
    await evaluate(options, _engine_options(options), _opened)


async def _keys(options: argparse.Namespace) -> None:
    make_keys(options)


async def _bench(options: argparse.Namespace) -> None:
    try:
        from octavo.load.run import bench_serve
    except ImportError as error:
        raise OctavoError(f'octavo bench serve needs {error.name}: pip install "octavo[server]"') from error
    await bench_serve(load_options(options))


async def _serve(options: argparse.Namespace) -> None:
    try:
        from octavo.openai.serve import listen, serve
    except ImportError as error:
        raise OctavoError(f'octavo serve needs {error.name}: pip install "octavo[server]"') from error
    engine, server = _engine_options(options), server_options(options)
    joined = joined_of(options, engine)
    signal.signal(signal.SIGTERM, _terminated)
    with listen(server) as listening:
        async with _opened(engine, joined, share=server.workers > 1) as client:
            await serve(client, server, listening, joined)


def _terminated(number: int, frame: Any) -> None:
    """While the engine loads, which has files to be removed; afterwards the server sees to signals."""
    raise SystemExit(128 + number)


# ---- the chat --------------------------------------------------------------------------------------------------


async def _chat(options: argparse.Namespace) -> None:
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    prompt = options.prompt
    if prompt is None and not interactive:
        try:
            prompt = sys.stdin.read().strip()
        except UnicodeDecodeError as error:
            raise InvalidOption("--prompt", "-", f"a text; what stands on standard input is none: {error}") from None
        if not prompt:
            raise InvalidOption("--prompt", "", "a text, or give one on standard input")
    engine = _engine_options(options)
    params = SamplingParams(**{name: getattr(options, name) for name in _SAMPLING})
    async with _opened(engine, joined_of(options, engine)) as client:
        if interactive:
            await chat(client, prompt, options.system, params, options.plain)
        else:
            await answer_once(client, prompt, options.system, params)


class _LoadBar:
    """What the engine says while it starts: a bar on a terminal, a line a stage elsewhere. All on stderr."""

    WIDTH = 32

    def __init__(self, doing: str = "starting the engine") -> None:
        self.started = time.perf_counter()
        self.live = sys.stderr.isatty()
        self.stage = ""
        self.ready = False
        self._line(f"{doing}{'' if self.live else ' ...'}")

    def update(self, progress: Progress) -> None:
        """The client's on_progress. An engine that is started again later has no bar."""
        if self.ready:
            return
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
        self.ready = True
        self._line(f"ready after {time.perf_counter() - self.started:.1f} s", last=True)

    def _line(self, text: str, last: bool = False) -> None:
        if self.live:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
