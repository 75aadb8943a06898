"""What Prometheus is told: how long requests took, and how many jobs are in each state."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.store.ports import Record


class Metrics:
    """One registry an app, so that two apps in one process do not share numbers."""

    def __init__(self, record: Record) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_JobsByState(record))
        self.streams = Gauge("stillhouse_event_streams", "Live event streams that are open", registry=self.registry)
        self._seconds = Histogram(
            "stillhouse_http_seconds",
            "Seconds until a request was answered in full",
            ("method", "route", "status"),
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"
        self._seconds.labels(known, route, f"{status // 100}xx").observe(seconds)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _JobsByState(Collector):
    """Counted when asked, so that every replica tells the same."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def describe(self) -> list[Metric]:
        """Spares the registry a look at the record when this is registered."""
        return [GaugeMetricFamily("stillhouse_jobs", "Jobs by state", labels=["state"])]

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("stillhouse_jobs", "Jobs by state", labels=["state"])
        for state, count in self._record.counts().items():
            family.add_metric([state], count)
        yield family
