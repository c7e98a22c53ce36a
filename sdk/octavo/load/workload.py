"""When requests come, how long they are, what they say. All of it drawn beforehand from one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import InvalidOption
from octavo.load.words import WORDS

__all__ = ["Shape", "arrivals", "prompts", "shapes", "source"]

# ShareGPT's mean lengths are those that the paper of vLLM reports (arXiv 2309.06180, section 6.1). That they are spread
# log-normally, and how widely, is our approximation.
_INPUT, _OUTPUT = (161.0, 1.1), (338.0, 0.9)
_CHARACTERS = 4.2  # a token of English, where only characters are known


class Shape(msgspec.Struct, frozen=True):
    """Tokens in and out of a request; prompt: its text, where a file gave one."""

    input: int
    output: int
    prompt: str | None = None


class _Line(msgspec.Struct):
    prompt: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds since the start at which requests are due: a Poisson process, or all of them at 0."""
    draw = random.Random(f"arrivals {seed}")
    at, made = 0.0, []
    for _ in range(count):
        made.append(at)
        at += 0.0 if math.isinf(rate) else draw.expovariate(rate)
    return made


def shapes(kind: str, count: int, max_input: int, max_output: int, seed: int) -> list[Shape]:
    """Raises InvalidOption for a kind that is none, or a file that holds no lengths."""
    draw = random.Random(f"lengths {seed}")
    if kind == "sharegpt":
        found = [Shape(_log_normal(draw, *_INPUT), _log_normal(draw, *_OUTPUT)) for _ in range(count)]
    elif kind.startswith("fixed:"):
        found = [_fixed(kind)] * count
    else:
        lines = _file(kind)
        draw.shuffle(lines)
        found = [lines[i % len(lines)] for i in range(count)]
    return [Shape(min(one.input, max_input), min(one.output, max_output), one.prompt) for one in found]


def _log_normal(draw: random.Random, mean: float, sigma: float) -> int:
    return max(4, round(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def _fixed(kind: str) -> Shape:
    try:
        tokens_in, tokens_out = (int(word) for word in kind.removeprefix("fixed:").split(","))
    except ValueError:
        tokens_in = tokens_out = 0
    if min(tokens_in, tokens_out) < 1:
        raise InvalidOption("--lengths", kind, "fixed:IN,OUT with two whole numbers >= 1")
    return Shape(tokens_in, tokens_out)


def _file(name: str) -> list[Shape]:
    wanted = "sharegpt, fixed:IN,OUT, or a file of JSON lines or of ShareGPT's JSON"
    try:
        data = Path(name).read_bytes()
        if data.lstrip()[:1] == b"[":
            found = list(_conversations(msgspec.json.decode(data)))
        else:
            found = [_shape(msgspec.json.decode(line, type=_Line)) for line in data.splitlines() if line.strip()]
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise InvalidOption("--lengths", name, f"{wanted} ({error})") from error
    if not found:
        raise InvalidOption("--lengths", name, f"{wanted}; this one holds no lengths")
    return found


def _shape(line: _Line) -> Shape:
    if line.output_tokens is None or (line.prompt is None and line.input_tokens is None):
        raise ValueError("each line needs output_tokens, and prompt or input_tokens")
    tokens_in = line.input_tokens if line.input_tokens is not None else _tokens(line.prompt or "")
    return Shape(max(1, tokens_in), max(1, line.output_tokens), line.prompt)


def _conversations(found: Any) -> Iterator[Shape]:
    """The first question and answer of each of ShareGPT's."""
    for one in found:
        turns = [turn.get("value", "") for turn in (one.get("conversations") or ())[:2]]
        if len(turns) == 2 and all(turns):
            yield Shape(_tokens(turns[0]), _tokens(turns[1]), turns[0])


def _tokens(text: str) -> int:
    return max(1, round(len(text) / _CHARACTERS))


# ---- texts -------------------------------------------------------------------------------------------------------


def source(name: str | None, seed: int) -> Callable[[int], str]:
    """A function that gives other texts of so many characters each time: from a file, or of random common words."""
    draw = random.Random(f"texts {seed}")
    if name is None:
        return lambda length: " ".join(draw.choices(WORDS, k=length // 3 + 2))[: max(1, length)]
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption("--text", name, f"a file of plain UTF-8 text ({error})") from error
    if len(text) < 1000:
        raise InvalidOption("--text", name, "a text of at least 1,000 characters")

    def cut(length: int) -> str:
        at, made = draw.randrange(len(text)), ""
        while len(made) < length:
            made += text[at : at + length - len(made)]
            at = 0
        return made

    return cut


def prompts(found: list[Shape], cut: Callable[[int], str], characters: float) -> list[str]:
    """The texts of the requests. characters: of this server's tokens, measured. All begin differently, so that no
    prefix cache can help."""
    made = []
    for number, shape in enumerate(found):
        length = max(1, round(shape.input * characters))
        if shape.prompt is not None:
            made.append(shape.prompt[:length])
        else:
            made.append(f"{number} {cut(length)}"[:length])
    return made
