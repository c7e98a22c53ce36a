"""Draws a result of `make bench-peers` as a PNG: picture.py RESULT.json OUT.png.

One panel a case, one bar an engine with its value written at the end; octavo in its own colour, rounded weights paler.
Run by an environment that has matplotlib: standard library and that alone.
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

OURS, OURS_QUANTISED, FULL, QUANTISED = "#d1495b", "#eaa0aa", "#30638e", "#a9bcd0"


def colour(engine: str) -> str:
    """By whose it is and whether its weights are quantised."""
    full = engine.endswith((":bf16", ":eager")) or ":" not in engine
    if engine.startswith("octavo"):
        return OURS if full else OURS_QUANTISED
    return FULL if full else QUANTISED


def main(source: str, target: str) -> None:
    """Bars from zero, so that lengths compare; quantised weights are paler."""
    with open(source) as file:
        result = json.load(file)
    rates = result["median_tokens_per_second"]
    engines = list(rates)[::-1]
    names = list(next(iter(rates.values())))
    figure, _ = pyplot.subplots(
        1, len(names), figsize=(max(6.4, 3.1 * len(names)), 0.34 * len(engines) + 1.7), sharey=True
    )
    for axis, name in zip(figure.axes, names, strict=True):
        values = [rates[engine][name] or 0.0 for engine in engines]
        bars = axis.barh(engines, values, color=[colour(engine) for engine in engines])
        axis.bar_label(bars, [f" {value:,.0f}" if value else " not run" for value in values], fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.set_xlim(0, (max(values) or 1.0) * 1.28)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.tick_params(left=False)
    machine = result["machine"]
    figure.suptitle(
        f"{result['model']}, greedy, prompt {result['prompt']}, output {result['output']}: tokens/s", fontsize=11
    )
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}"
    caption = f"{where}. Pale: quantised weights. Medians of one interleaved run."
    figure.text(0.5, 0.01, caption, ha="center", fontsize=7.5, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(target, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
