"""
What Prometheus is told. Every name is explained in docs/guide/operating.md.

A process counts what happens in it. What happens in drivers, which nobody scrapes and which end with their jobs, is
read from the record: it is the same at every replica, counted from the replica's start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from statistics import median
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from search.errors import FieldError, StoreUnavailable
from service.settings import PREFIX, InvalidSettings, Settings
from service.store.figures import CLAIM_BOUNDS, TRIAL_BOUNDS
from service.store.ports import Record
from service.store.values import Backlog, Figures, Spread, Tally
from service.throttle import Throttle
from workers.dispatcher import Dispatcher

logger = logging.getLogger("stillhouse.metrics")

KEPT_SECONDS = 5.0
"""For so long the record is not asked again, however often somebody scrapes."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """
    Those of one API. One registry an app, so that two apps in one process do not share numbers.

    `ready` says whether the tables suit this version and the server is not about to end; `streams` how many event
    streams are open.
    """

    def __init__(
        self, record: Record, throttle: Throttle, *, ready: Callable[[], bool], streams: Callable[[], int]
    ) -> None:
        self.registry = _registry()
        self.registry.register(_Recorded(record, ready))
        self.registry.register(_Here(record, throttle))
        open_streams = Gauge("stillhouse_event_streams", "Live event streams that are open", registry=self.registry)
        open_streams.set_function(streams)
        self._seconds = Histogram(
            "stillhouse_http_seconds",
            "Seconds until a request was answered in full",
            ("method", "route", "status"),
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"
        self._seconds.labels(known, route, f"{status // 100}xx").observe(seconds)


def dispatcher_registry(dispatcher: Dispatcher) -> CollectorRegistry:
    """What is told of a dispatcher, in a process of its own or beside an API."""
    registry = _registry()
    registry.register(Drivers(dispatcher))
    return registry


def publish(settings: Settings, registry: CollectorRegistry) -> WSGIServer | None:
    """
    Answers at `metrics_port` of `metrics_host`, if that is set, with what is in the registry. Asks nobody for a key.

    Raises:
        InvalidSettings: the port cannot be had.
    """
    if settings.metrics_port is None:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        message = (
            f"{PREFIX}METRICS_PORT: cannot listen on {settings.metrics_host}:{settings.metrics_port} "
            f"({error.strerror}); give another one"
        )
        raise InvalidSettings([FieldError("/metrics_port", InvalidSettings.code, message)]) from None
    return server


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    about = Gauge("stillhouse_info", "Always 1; says which version this is", ("version",), registry=registry)
    about.labels(version("stillhouse")).set(1)
    return registry


class _Recorded(Collector):
    """What the record says. While it cannot be reached only that is told, and the rest is missing."""

    def __init__(self, record: Record, ready: Callable[[], bool]) -> None:
        self._record, self._ready = record, ready
        self._lock, self._began = threading.Lock(), time.monotonic()
        self._latest: tuple[float, Figures, Backlog] | None = None
        self._waits = _Sum(CLAIM_BOUNDS)
        self._trials = _Sum(TRIAL_BOUNDS)
        self._proposals = self._projected = 0

    def describe(self) -> list[Metric]:
        """Spares the registry a look at the record when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            ready = self._ready()
            with self._lock:
                families = list(self._told(*self._asked()))
        except StoreUnavailable as error:
            logger.warning("the record cannot be asked for its figures: %s", error)
            ready, families = False, []
        yield GaugeMetricFamily("stillhouse_ready", "1 while requests should be sent here, as /readyz says", int(ready))
        yield from families

    def _asked(self) -> tuple[Figures, Backlog]:
        moment = time.monotonic()
        if self._latest is not None and moment - self._latest[0] < KEPT_SECONDS:
            return self._latest[1:]
        since: datetime | None = None if self._latest is None else self._latest[1].until
        backlog = self._record.outbox()
        figures = self._record.figures(since, reach_seconds=moment - self._began)
        self._latest = moment, figures, backlog
        self._waits.add(figures.waits)
        self._trials.add(figures.trials)
        self._proposals += figures.proposals
        self._projected += figures.projected
        return figures, backlog

    def _told(self, figures: Figures, backlog: Backlog) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("stillhouse_jobs", "Jobs by state", labels=["state"])
        for state, count in figures.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily(
            "stillhouse_queue_age_seconds", "How long the oldest job that waits has waited", figures.queue_seconds
        )
        yield self._waits.family("stillhouse_claim_latency_seconds", "From a job's submission to its first claim")
        yield self._trials.family("stillhouse_trial_seconds", "How long a trial was trained, from rung to rung")
        proposals = CounterMetricFamily(
            "stillhouse_proposals",
            "Candidates scored, by whether they had to be moved into the budget",
            None,
            ["moved"],
        )
        proposals.add_metric(["no"], self._proposals - self._projected)
        proposals.add_metric(["yes"], self._projected)
        yield proposals
        for tally, words in _TALLIES.items():
            yield CounterMetricFamily(f"stillhouse_{tally}", words, figures.tallies[tally])
        yield GaugeMetricFamily(
            "stillhouse_outbox_lag_seconds",
            "How long the oldest delivery to a webhook is overdue",
            backlog.oldest_seconds,
        )
        yield GaugeMetricFamily("stillhouse_outbox_waiting", "Deliveries that are still to be made", backlog.waiting)
        yield GaugeMetricFamily("stillhouse_outbox_dead", "Deliveries that were given up", backlog.dead)
        correlation = GaugeMetricFamily(
            "stillhouse_proxy_correlation",
            "Rank correlation of short with long training, over the latest jobs that know it",
            labels=["of"],
        )
        if figures.correlations:
            correlation.add_metric(["least"], figures.correlations[0])
            correlation.add_metric(["median"], median(figures.correlations))
        yield correlation


_TALLIES = {
    Tally.LEASES_EXPIRED: "Jobs taken over because their driver let the lease run out",
    Tally.STALE_WRITES: "Writes refused because another driver had the job by then",
}


class _Sum:
    """A histogram that grows by spreads."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, spread: Spread) -> None:
        self._counts = [old + new for old, new in zip(self._counts, spread.counts, strict=True)]
        self._sum += spread.sum

    def family(self, name: str, words: str) -> HistogramMetricFamily:
        below, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        return HistogramMetricFamily(name, words, buckets, self._sum)


class _Here(Collector):
    """What this process knows of itself without asking anybody."""

    def __init__(self, record: Record, throttle: Throttle) -> None:
        self._record, self._throttle = record, throttle

    def collect(self) -> Iterator[Metric]:
        connections = self._record.connections()
        yield GaugeMetricFamily(
            "stillhouse_database_connections", "Connections to the database that are in use", connections.used
        )
        yield GaugeMetricFamily(
            "stillhouse_database_connections_limit", "As many may be in use at a time", connections.most
        )
        yield CounterMetricFamily(
            "stillhouse_rate_limited", "Requests refused because their key was used too often", self._throttle.refused
        )
        yield GaugeMetricFamily("stillhouse_throttled_keys", "Keys whose rate is being watched", self._throttle.watched)


class Drivers(Collector):
    """The driver processes of a dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("stillhouse_drivers", "Driver processes that are running", self._dispatcher.running)
        yield GaugeMetricFamily("stillhouse_driver_slots", "As many may run at a time", self._dispatcher.slots)
        ended = CounterMetricFamily(
            "stillhouse_drivers_ended", "Driver processes that ended, by whether in good order", None, ["well"]
        )
        for well, count in self._dispatcher.ended.items():
            ended.add_metric(["yes" if well else "no"], count)
        yield ended
