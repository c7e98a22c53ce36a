"""The command: find the model, measure its tokens, put the load on, and tell."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec

from octavo.errors import InvalidOption, OctavoError
from octavo.load.drive import Load, Spec, drive
from octavo.load.exchange import Answer, Target
from octavo.load.options import LoadOptions
from octavo.load.picture import draw
from octavo.load.summary import summary, table
from octavo.load.workload import arrivals, prompts, shapes, source

__all__ = ["bench_serve"]

_SAMPLE = 2000  # characters of the request that tells how long this server's tokens are


async def bench_serve(options: LoadOptions) -> dict[str, Any]:
    """Print the table to stdout, write what was asked for; the summary. Raises OctavoError where nothing succeeded."""
    target = Target.at(options.url, options.api_key)
    found = shapes(options.lengths, options.requests, options.max_input, options.max_output, options.seed)
    cut = source(options.text, options.seed)
    model = options.model or await _first_model(target)
    characters = await _characters(target, options, model, cut(_SAMPLE))
    texts = prompts(found, cut, characters)
    path = "/v1/chat/completions" if options.endpoint == "chat" else "/v1/completions"
    due = arrivals(options.requests, options.rate, options.seed)
    specs = [
        Spec(at, path, msgspec.json.encode(_body(options, model, text, shape.output, stream=True)))
        for at, text, shape in zip(due, texts, found, strict=True)
    ]
    counter = _Counter(options.requests)
    load = await drive(target, specs, options.concurrency, options.timeout, counter.update)
    counter.close()
    made = summary(load, options.slo, from_due=_from_due(options))
    made["model"], made["characters_per_token"] = model, characters
    if not made["completed"]:
        raise OctavoError(f"no request succeeded at {options.url}: {', '.join(made['failed'])}")
    print(_title(options, model))
    print(table(made), flush=True)
    _write(options, model, load, made)
    return made


def _from_due(options: LoadOptions) -> bool:
    """All at once is no schedule: then a request counts from when it was sent."""
    return not math.isinf(options.rate)


def _title(options: LoadOptions, model: str) -> str:
    rate = "all at once" if math.isinf(options.rate) else f"{options.rate:g} requests/s (Poisson)"
    bound = f", at most {options.concurrency} in flight" if options.concurrency else ""
    return f"{model}: {options.requests} requests, {rate}{bound}, lengths {options.lengths}"


def _body(options: LoadOptions, model: str, text: str, output: int, *, stream: bool) -> dict[str, Any]:
    chat = options.endpoint == "chat"
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    asked |= {"model": model, "max_tokens": output, "temperature": options.temperature}
    if options.ignore_eos:
        asked["ignore_eos"] = True
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return asked


async def _first_model(target: Target) -> str:
    status, body = await _reached(target, "GET", "/v1/models")
    try:
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise InvalidOption("--model", None, f"a name: /v1/models answered {status} {body[:200]!r}") from None


async def _characters(target: Target, options: LoadOptions, model: str, sample: str) -> float:
    """Characters a token, from what the server counts of a text: the difference of two, for the template's own share.

    They also warm the server up.
    """
    counts = []
    path = "/v1/chat/completions" if options.endpoint == "chat" else "/v1/completions"
    for text in (sample[: _SAMPLE // 10], sample):
        body = msgspec.json.encode(_body(options, model, text, 1, stream=False))
        status, answer = await _reached(target, "POST", path, body)
        try:
            counts.append(int(msgspec.json.decode(answer)["usage"]["prompt_tokens"]))
        except (msgspec.DecodeError, LookupError, TypeError):
            raise OctavoError(f"{path} answered {status} {answer[:300].decode(errors='replace')}") from None
    return max(0.5, (len(sample) - _SAMPLE // 10) / max(1, counts[1] - counts[0]))


async def _reached(target: Target, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    try:
        async with Answer.to(target, method, path, body) as answer:
            return answer.status, await answer.body()
    except (OSError, anyio.BrokenResourceError) as error:
        raise InvalidOption("--url", f"{target.host}:{target.port}", f"a server that answers ({error})") from error


def _write(options: LoadOptions, model: str, load: Load, made: dict[str, Any]) -> None:
    if options.out:
        asked = {name: value for name, value in msgspec.structs.asdict(options).items() if name != "api_key"}
        asked["rate"] = "inf" if math.isinf(options.rate) else options.rate
        whole = {"options": asked, "summary": made, "requests": load.records}
        _file("--out", options.out, msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
    if options.picture:
        picture = draw(load, made, _title(options, model), from_due=_from_due(options))
        _file("--picture", options.picture, picture.encode())


def _file(option: str, name: str, data: bytes) -> None:
    try:
        Path(name).write_bytes(data)
    except OSError as error:
        raise InvalidOption(option, name, f"a file that can be written ({error.strerror})") from error


class _Counter:
    """Requests done, on a terminal's stderr."""

    def __init__(self, total: int) -> None:
        self._total, self._live = total, sys.stderr.isatty()

    def update(self, done: int, failed: int) -> None:
        if self._live:
            more = f", {failed} failed" if failed else ""
            print(f"\r\x1b[K{done} of {self._total} requests{more}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
