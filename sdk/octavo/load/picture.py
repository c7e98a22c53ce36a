"""A load as an SVG: how latencies are distributed, and what ran when. Light or dark as the reader's page is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from octavo.load.drive import Load
from octavo.load.summary import latencies

__all__ = ["draw"]

_WIDTH, _HEIGHT = 440, 240  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 34, 38
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5c5c5c}.title{font-size:13px;font-weight:600;fill:#222}"
    ".grid{stroke:#ddd}.line{fill:none;stroke:#d1495b;stroke-width:1.8}.second{stroke:#30638e}"
    ".slo{stroke-dasharray:4 3;stroke:#888}.back{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#aaa}.title{fill:#eee}.grid{stroke:#3a3a3a}"
    ".line{stroke:#ef8a97}.second{stroke:#7fb0dc}.back{fill:#17181b}}"
)


class _Panel:
    """A plot at (x, y); its horizontal axis may be logarithmic, its vertical one starts at 0."""

    def __init__(self, x: int, y: int, title: str, low: float, high: float, top: float, *, log: bool = False) -> None:
        self.log, self.low, self.high, self.top = log, low, max(high, low * 1.01 + 1e-9), top or 1.0
        self.x, self.y = x, y
        self.parts = [f'<text class="title" x="{x + _LEFT}" y="{y + 20}">{escape(title)}</text>']

    def across(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.x + _LEFT + min(1.0, share) * (_WIDTH - _LEFT - _RIGHT), 1)

    def up(self, value: float) -> float:
        return round(self.y + _HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self, unit: str, shown: Sequence[tuple[float, str]]) -> None:
        """shown: marks of the vertical axis, and what they are called."""
        bottom, right = self.y + _HEIGHT - _BOTTOM, self.x + _WIDTH - _RIGHT
        for value, words in shown:
            at = self.up(value)
            self.parts.append(f'<line class="grid" x1="{self.x + _LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
            self.parts.append(f'<text text-anchor="end" x="{self.x + _LEFT - 6}" y="{at + 4}">{escape(words)}</text>')
        for value in _ticks(self.low, self.high, self.log):
            at = self.across(value)
            self.parts.append(f'<text text-anchor="middle" x="{at}" y="{bottom + 16}">{value:g}</text>')
        self.parts.append(f'<text text-anchor="end" x="{right}" y="{bottom + 31}">{escape(unit)}</text>')

    def line(self, points: Sequence[tuple[float, float]], kind: str = "") -> None:
        path = " ".join(f"{self.across(a)},{self.up(b)}" for a, b in points)
        self.parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def upright(self, value: float) -> None:
        at, bottom = self.across(value), self.y + _HEIGHT - _BOTTOM
        self.parts.append(f'<line class="slo" x1="{at}" x2="{at}" y1="{self.y + _TOP}" y2="{bottom}"/>')


def draw(load: Load, summary: dict[str, Any], title: str, *, from_due: bool) -> str:
    """An SVG of four panels: the distributions of TTFT, ITL and whole answers, and requests and tokens over time."""
    found = latencies(load.records, from_due=from_due)
    slo = summary.get("slo_ms", {})
    names = {"ttft": "Time to the first token", "itl": "Time between two pieces of text", "e2e": "Whole answer"}
    parts: list[str] = []
    for place, (name, words) in enumerate(names.items()):
        at = (place % 2 * _WIDTH, 40 + place // 2 * _HEIGHT)
        parts += _distribution(at, words, found[name], slo.get(name))
    parts += _timeline((_WIDTH, 40 + _HEIGHT), load)
    width, height, said = 2 * _WIDTH, 2 * _HEIGHT + 56, escape(title)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{said}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
        f'<text class="title" x="{_LEFT}" y="26">{said}</text>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _distribution(at: tuple[int, int], title: str, values: Sequence[float], limit: float | None) -> list[str]:
    ordered = sorted(value for value in values if value > 0) or [1.0]
    panel = _Panel(*at, f"{title}, share of all", ordered[0], max(ordered[-1], limit or 0), 1.0, log=True)
    panel.axes("ms, logarithmic", [(share / 100, f"{share} %") for share in (0, 25, 50, 75, 100)])
    step = max(1, len(ordered) // 400)
    points = [(value, (i + 1) / len(ordered)) for i, value in enumerate(ordered) if i % step == 0]
    panel.line([*points, (ordered[-1], 1.0)])
    if limit is not None:
        panel.upright(limit)
    return panel.parts


def _timeline(at: tuple[int, int], load: Load) -> list[str]:
    """Requests in flight, and output tokens a second, each on its own scale."""
    count = min(200, max(20, round(load.seconds * 2)))
    width = load.seconds / count
    running, tokens = [0.0] * count, [0.0] * count
    for record in load.records:
        for i in range(round(record.sent / width), min(count, round(record.end / width))):  # what ran at its middle
            running[i] += 1
        for chunk in record.chunks:
            tokens[min(count - 1, int(chunk / width))] += record.tokens / len(record.chunks) / width
    most, fastest = max(running), max(tokens)
    title = f"Red: in flight (to {most:.0f}), blue: tokens/s (to {fastest:,.0f})"
    panel = _Panel(*at, title, 0.0, load.seconds, 1.05)
    panel.axes("seconds since the start", [(share, f"{share * most:.0f}") for share in (0.0, 0.5, 1.0)])
    for values, largest, kind in ((tokens, fastest, "second"), (running, most, "")):
        panel.line([((i + 0.5) * width, value / (largest or 1)) for i, value in enumerate(values)], kind)
    return panel.parts


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        inside = [value for value in found if low <= value <= high]
        return inside if len(inside) <= 7 else [value for value in inside if f"{value:e}"[0] == "1"]
    step = 10 ** math.floor(math.log10(high - low))
    step = next(step * part for part in (1, 2, 5, 10) if (high - low) / (step * part) <= 6)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
