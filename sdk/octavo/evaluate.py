"""`octavo eval perplexity`: one model under one or several settings on the same text, as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from octavo.client import AsyncClient
from octavo.errors import InvalidOption
from octavo.options import EngineOptions
from octavo.perplexity import Perplexity, perplexity, rise

__all__ = ["add_arguments", "evaluate", "parse_setting"]

_ANY_TEXT = (
    "a file of plain UTF-8 text of some thousand words, or - for standard input: a book (Project Gutenberg has many as "
    "plain text), a manual that a package ships (Debian's debian-handbook, for one), or texts of your own domain"
)
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Open = Callable[[EngineOptions], AbstractAsyncContextManager[AsyncClient]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes besides the model and the engine's options."""
    parser.add_argument("--text", metavar="FILE", help=_ANY_TEXT)
    parser.add_argument("--context", type=int, metavar="N", help="tokens a window; default 1024, or the model's most")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens between two windows; default half of --context")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="take no more of the text than this")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="SETTING",
        help='measure these too, each with the engine options below but for what it says, such as "quantization=int8" '
        'or "quantization=int4:g64,asymmetric kv_cache_dtype=int8"; the rise is against the first line',
    )


async def evaluate(options: argparse.Namespace, engine: EngineOptions, open_client: Open) -> None:
    """Measure every setting, an engine at a time, and print the table to stdout.

    Raises InvalidOption where the command line is wrong, and what the engine raises.
    """
    text = _read(options.text)
    settings = [(_label(engine), engine), *((words, parse_setting(engine, words)) for words in options.compare)]
    tokens: list[int] = []
    per_token = 0.0
    results: list[tuple[str, Perplexity]] = []
    for label, setting in settings:
        async with open_client(setting) as client:
            if not tokens:
                tokens = await client.tokenize(text)
                per_token = len(text.encode()) / max(1, len(tokens))
                tokens = tokens[: options.max_tokens]
            counter = _Counter(label)
            made = await perplexity(
                client, tokens, context=options.context, stride=options.stride, on_window=counter.update
            )
            counter.close()
        results.append((label, made))
    print(_table(results, per_token))


def _read(name: str | None) -> str:
    if name is None:
        raise InvalidOption("--text", None, _ANY_TEXT)
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption("--text", name, f"{_ANY_TEXT} ({error})") from error


# ---- settings ----------------------------------------------------------------------------------------------------


def parse_setting(engine: EngineOptions, words: str) -> EngineOptions:
    """`engine` with the fields that "NAME=VALUE NAME=VALUE" gives. Raises InvalidOption."""
    types = {field.name: str(field.type) for field in msgspec.structs.fields(EngineOptions) if field.name != "model"}
    changes: dict[str, Any] = {}
    for word in words.split():
        name, found, value = word.partition("=")
        if not found or name not in types:
            raise InvalidOption("--compare", word, "NAME=VALUE with a field of EngineOptions, as " + ", ".join(types))
        changes[name] = _value(types[name], value)
    return EngineOptions(**{**_fields(engine), **changes})


def _value(kind: str, text: str) -> Any:
    """By the field's type. What fits none stays text, for the options themselves to refuse by name."""
    if "None" in kind and text.lower() == "none":
        return None
    if "bool" in kind:
        return _SWITCH.get(text.lower(), text)
    if "str" in kind:
        return text
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _fields(options: EngineOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in EngineOptions.__struct_fields__}


def _label(engine: EngineOptions) -> str:
    """What differs from the defaults, in the words of --compare."""
    default = _fields(EngineOptions())
    said = [f"{name}={value}" for name, value in _fields(engine).items() if value != default[name] and name != "model"]
    return " ".join(said) or "defaults"


# ---- what is printed ---------------------------------------------------------------------------------------------


class _Counter:
    """Windows done, on a terminal's stderr."""

    def __init__(self, label: str) -> None:
        self._label, self._live = label, sys.stderr.isatty()

    def update(self, done: int, total: int) -> None:
        if self._live:
            print(f"\r\x1b[K{self._label}: window {done} of {total}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _table(results: Sequence[tuple[str, Perplexity]], per_token: float) -> str:
    base = results[0][1]
    rows = [["setting", "perplexity", "rise", "bits/byte", "tokens", "seconds", "tokens/s"]]
    for label, made in results:
        shown = "-"
        if made is not base:
            found = rise(base, made)
            shown = f"{found.value:+.2%} ± {found.error:.2%}"
        rows.append(
            [
                label,
                f"{made.perplexity:.4f}",
                shown,
                f"{made.bits_per_byte(per_token):.4f}",
                f"{len(made.logprobs):,}",
                f"{made.seconds:.1f}",
                f"{made.tokens_read / made.seconds:,.0f}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    note = (
        f"context {base.context}, stride {base.stride}; tokens: scored; tokens/s: {base.tokens_read:,} read, "
        "overlaps included"
    )
    return "\n".join([*lines, note])
