"""What a load says: percentiles, throughput, goodput, and the client's own share. Times in milliseconds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from octavo.load.drive import Load, Record

__all__ = ["PERCENTILES", "latencies", "percentile", "summary", "table"]

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two values around it; nan of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = (len(ordered) - 1) * share / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def latencies(records: Sequence[Record], *, from_due: bool) -> dict[str, list[float]]:
    """Milliseconds of every request that ended well. ttft, e2e: since it was due (or sent); tpot: between its tokens on
    the mean; itl: between two pieces of text, which are tokens unless the server put several into one."""
    made: dict[str, list[float]] = {"ttft": [], "tpot": [], "itl": [], "e2e": []}
    for record in records:
        for name, values in _of(record, from_due).items():
            made[name] += values
    return made


def _of(record: Record, from_due: bool) -> dict[str, list[float]]:
    if record.error is not None or not record.chunks:
        return {}
    begin = record.due if from_due else record.sent
    first, last = record.chunks[0], record.chunks[-1]
    gaps = [(b - a) * 1e3 for a, b in pairwise(record.chunks)]
    tpot = [(last - first) * 1e3 / (record.tokens - 1)] if record.tokens > 1 and gaps else []
    return {"ttft": [(first - begin) * 1e3], "tpot": tpot, "itl": gaps, "e2e": [(record.end - begin) * 1e3]}


def _meets(record: Record, slo: Mapping[str, float], from_due: bool) -> bool:
    found = _of(record, from_due)
    return bool(found) and all(percentile(found[name] or [0.0], 99) <= limit for name, limit in slo.items())


def summary(load: Load, slo: Mapping[str, float], *, from_due: bool) -> dict[str, Any]:
    """Plain data, as it is written to JSON."""
    done = [record for record in load.records if record.error is None]
    errors = Counter(record.error for record in load.records if record.error is not None)
    made: dict[str, Any] = {
        "requests": len(load.records),
        "completed": len(done),
        "failed": dict(errors.most_common(10)),
        "seconds": load.seconds,
        "prompt_tokens": sum(record.prompt_tokens for record in done),
        "output_tokens": sum(record.tokens for record in done),
        "requests_per_second": len(done) / load.seconds,
        "output_tokens_per_second": sum(record.tokens for record in done) / load.seconds,
        "most_in_flight": _most_in_flight(load.records),
    }
    for name, values in latencies(load.records, from_due=from_due).items():
        made[f"{name}_ms"] = _spread(values)
    if slo:
        good = sum(_meets(record, slo, from_due) for record in load.records)
        made["slo_ms"] = dict(slo)
        made["goodput_requests_per_second"] = good / load.seconds
        made["goodput_share"] = good / len(load.records)
    made["client"] = {
        "late_ms": _spread([value * 1e3 for value in load.overhead.late]),
        "lag_ms": _spread([value * 1e3 for value in load.overhead.lag]),
        "cpu_share": load.overhead.cpu,
    }
    return made


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "mean": math.fsum(values) / len(values),
        **{f"p{share}": percentile(values, share) for share in PERCENTILES},
        "max": max(values),
    }


def _most_in_flight(records: Sequence[Record]) -> int:
    edges = sorted([(record.sent, 1) for record in records] + [(record.end, -1) for record in records])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most


def table(made: Mapping[str, Any]) -> str:
    """For people."""
    header = ["ms", "mean", *(f"p{share}" for share in PERCENTILES), "max"]
    names = {"ttft": "first token", "itl": "between tokens", "tpot": "per token", "e2e": "whole answer"}
    rows = [header]
    for name, words in names.items():
        found = made[f"{name}_ms"]
        cells = ["-"] * 5 if found is None else [_figure(value) for value in found.values()]
        rows.append([f"{words} ({name.upper()})", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [
        "",
        f"{made['completed']} of {made['requests']} requests in {made['seconds']:.1f} s, at most "
        f"{made['most_in_flight']} at once: {made['requests_per_second']:.2f} requests/s, "
        f"{made['output_tokens_per_second']:,.0f} output tokens/s",
    ]
    if "slo_ms" in made:
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in made["slo_ms"].items())
        lines.append(
            f"goodput within {limits}: {made['goodput_requests_per_second']:.2f} requests/s "
            f"({made['goodput_share']:.0%} of all)"
        )
    lines.append(_client(made["client"]))
    lines += [f"failed {count} times: {error}" for error, count in made["failed"].items()]
    return "\n".join(lines)


def _client(found: Mapping[str, Any]) -> str:
    late = "" if found["late_ms"] is None else f"sent {_figure(found['late_ms']['p99'])} ms late (p99), "
    lag = "" if found["lag_ms"] is None else f"saw arrivals up to {_figure(found['lag_ms']['p99'])} ms late (p99), "
    return f"this client: {late}{lag}{found['cpu_share']:.0%} of a core"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
