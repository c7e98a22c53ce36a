"""GET /metrics in Prometheus' text format: the engine's figures, and what the requests of this server took.

Names are those that dashboards of other engines know, with our prefix.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from octavo.openai.telemetry import used

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from octavo.results import Usage

__all__ = ["Metrics"]

_COUNTERS = (
    "_tokens",
    "request_success",
    "request_failed",
    "request_aborted",
    "num_preemptions",
    "_queries",
    "_hits",
    "model_seconds",
    "model_steps",
)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class _Engine(Collector):
    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self._values.items()):
            family = CounterMetricFamily if name.endswith(_COUNTERS) else GaugeMetricFamily
            yield family(f"octavo_{name}", name.replace("_", " "), value=value)


class Watch:
    """The times of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = 0.0

    def tokens(self, count: int) -> None:
        """That many have just come."""
        if count:
            now = time.perf_counter()
            if self._last:
                self._metrics.gap.observe((now - self._last) / count)
            self._last = now

    def finished(self, usage: Usage) -> None:
        used(usage)
        metrics = self._metrics
        metrics.whole.observe(usage.total_seconds)
        metrics.queue.observe(usage.queue_seconds)
        if usage.first_token_seconds is not None:
            metrics.first.observe(usage.first_token_seconds)
            metrics.prefill.observe(max(0.0, usage.first_token_seconds - usage.queue_seconds))
            metrics.decode.observe(max(0.0, usage.total_seconds - usage.first_token_seconds))


class Metrics:
    """Histograms of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"octavo_{name}", what, registry=self._registry, buckets=buckets)

        self.first = histogram("time_to_first_token_seconds", "from the request to its first token")
        self.gap = histogram("inter_token_latency_seconds", "between tokens of a stream", _GAPS)
        self.whole = histogram("e2e_request_latency_seconds", "from the request to its end")
        self.queue = histogram("request_queue_time_seconds", "until it was first scheduled")
        self.prefill = histogram("request_prefill_time_seconds", "from then to its first token")
        self.decode = histogram("request_decode_time_seconds", "from its first token to its end")

    def watch(self) -> Watch:
        """Of one request that begins now."""
        return Watch(self)

    def text(self, engine: Mapping[str, float]) -> bytes:
        """What /metrics answers, with the engine's figures."""
        live = CollectorRegistry()
        live.register(_Engine(engine))
        return generate_latest(live) + generate_latest(self._registry)
