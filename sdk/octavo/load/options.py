"""What `octavo bench serve` can be told."""

from __future__ import annotations

import argparse
import math

import msgspec

from octavo.errors import InvalidOption

__all__ = ["SLO_FIELDS", "LoadOptions", "add_arguments", "options_of"]

SLO_FIELDS = ("ttft", "itl", "tpot", "e2e")


class LoadOptions(msgspec.Struct, kw_only=True, frozen=True):
    """rate: requests a second, their gaps exponential (a Poisson process); inf: all at once. slo: milliseconds, each
    request's own for ttft, tpot and e2e, its 99th percentile for itl."""

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api_key: str | None = None
    endpoint: str = "chat"
    requests: int = 100
    rate: float = math.inf
    concurrency: int | None = None
    lengths: str = "sharegpt"
    max_input: int = 1024
    max_output: int = 1024
    text: str | None = None
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 600.0
    slo: dict[str, float] = {}
    out: str | None = None
    picture: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = LoadOptions()
    add = parser.add_argument
    add("--url", default=default.url, metavar="URL", help=f"of the server, without /v1; default {default.url}")
    add("--model", metavar="NAME", help="default: the first that /v1/models lists")
    add("--api-key", metavar="KEY")
    add("--endpoint", default="chat", choices=["chat", "completions"], help="default chat")
    add("--requests", type=int, default=default.requests, metavar="N", help=f"default {default.requests}")
    add(
        "--rate", type=float, default=default.rate, metavar="X", help="requests a second, Poisson; default inf: at once"
    )
    add("--concurrency", type=int, metavar="N", help="most requests in flight; default: no bound")
    add(
        "--lengths",
        default=default.lengths,
        metavar="KIND",
        help="sharegpt (log-normal, means of 161 and 338 tokens), fixed:IN,OUT, or a file: JSON lines that hold prompt "
        "or input_tokens, and output_tokens, or ShareGPT's JSON",
    )
    add("--max-input", type=int, default=1024, metavar="N", help="tokens; longer ones are cut; default 1024")
    add("--max-output", type=int, default=1024, metavar="N", help="likewise")
    add("--text", metavar="FILE", help="plain text that prompts are cut from; default: random common words")
    add("--ignore-eos", action=argparse.BooleanOptionalAction, default=True, help="answers of exactly those lengths")
    add("--temperature", type=float, default=0.0, metavar="X", help="default 0")
    add("--seed", type=int, default=0, metavar="N", help="of arrivals, lengths and texts; default 0")
    add("--timeout", type=float, default=600.0, metavar="S", help="of one request; default 600")
    add("--slo", default="", metavar="SLO", help="goodput counts requests within, in ms, such as ttft:500,tpot:50")
    add("--out", metavar="FILE", help="write everything as JSON")
    add("--picture", metavar="FILE", help="write an SVG")


def options_of(arguments: argparse.Namespace) -> LoadOptions:
    """Raises InvalidOption."""
    values = {name: getattr(arguments, name) for name in LoadOptions.__struct_fields__ if name != "slo"}
    options = LoadOptions(**values, slo=_slo(arguments.slo))
    for name in ("requests", "max_input", "max_output"):
        if getattr(options, name) < 1:
            raise InvalidOption(f"--{name.replace('_', '-')}", getattr(options, name), "a whole number >= 1")
    for name in ("rate", "timeout"):
        if not getattr(options, name) > 0:
            raise InvalidOption(f"--{name}", getattr(options, name), "a number above 0")
    if options.concurrency is not None and options.concurrency < 1:
        raise InvalidOption("--concurrency", options.concurrency, "a whole number >= 1")
    return options


def _slo(text: str) -> dict[str, float]:
    made: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in SLO_FIELDS or not limit > 0:
            raise InvalidOption("--slo", part, f"NAME:MILLISECONDS with a name of {', '.join(SLO_FIELDS)}")
        made[name] = limit
    return made
