"""One case through a client: every prompt a stream of its own, each arrival timed where the application gets it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import quantiles

from octavo import AsyncClient, SamplingParams

__all__ = ["Measurement", "measure"]


@dataclass
class _Arrivals:
    """(seconds since the case began, tokens) of every delta of one stream."""

    deltas: list[tuple[float, int]]

    @property
    def first(self) -> float:
        return self.deltas[0][0]

    @property
    def last(self) -> float:
        return self.deltas[-1][0]


@dataclass
class Measurement:
    """All streams of one case that began together."""

    streams: list[_Arrivals]

    @property
    def tokens(self) -> int:
        return sum(tokens for stream in self.streams for _, tokens in stream.deltas)

    @property
    def deltas(self) -> int:
        return sum(len(stream.deltas) for stream in self.streams)

    @property
    def seconds(self) -> float:
        """From the first request sent to the last token."""
        return max(stream.last for stream in self.streams)

    def decode_rate(self, *, deltas: bool = False) -> float | None:
        """Tokens (or deltas) a second while every stream decodes: after the last first token, before the first end.

        None where that is less than a tenth of the time: the prompts of the last ones were read while the first ended.
        """
        begin = max(stream.first for stream in self.streams)
        end = min(stream.last for stream in self.streams)
        if end - begin < 0.1 * self.seconds:
            return None
        arrived = [
            1 if deltas else tokens for stream in self.streams for at, tokens in stream.deltas if begin < at <= end
        ]
        return sum(arrived) / (end - begin)

    def first_token(self) -> tuple[float, float]:
        """Median and 99th percentile of the time to first token, in seconds."""
        return _percentiles([stream.first for stream in self.streams])

    def between(self) -> tuple[float, float] | None:
        """Median and 99th percentile of the time between two deltas of a stream, in seconds."""
        gaps = [
            later - earlier
            for stream in self.streams
            for (earlier, _), (later, _) in zip(stream.deltas, stream.deltas[1:], strict=False)
        ]
        return _percentiles(gaps) if gaps else None


def _percentiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def measure(client: AsyncClient, prompts: list[list[int]], params: SamplingParams) -> Measurement:
    """Send all prompts at once and read every stream to its end."""
    started = time.perf_counter()

    async def read(prompt: list[int]) -> _Arrivals:
        arrivals = _Arrivals([])
        async for delta in client.stream(prompt, params):
            arrivals.deltas.append((time.perf_counter() - started, len(delta.token_ids)))
        return arrivals

    streams = await asyncio.gather(*map(read, prompts))
    made = Measurement(list(streams))
    expected = len(prompts) * (params.max_tokens or 0)
    if made.tokens != expected:
        raise RuntimeError(f"{made.tokens} tokens came, {expected} were asked for")
    return made
