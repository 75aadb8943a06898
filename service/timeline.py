"""When which trial was worked on, and where: intervals, told from a job's events."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import AwareDatetime

from service.findings import Document
from workers.events import Event, Kind
from workers.ports import JobRecord

KINDS = (
    Kind.TRIAL_STARTED,
    Kind.TRIAL_SCORED,
    Kind.TRIAL_RETURNED,
    Kind.TRIAL_STOPPED,
    Kind.TRIAL_FAILED,
    Kind.TRIAL_CANCELLED,
)
"""The events that intervals are told from."""


class Outcome(StrEnum):
    SCORED = "SCORED"
    """And taken further since, or waiting for that."""
    COMPLETED = "COMPLETED"
    """Scored at the last rung."""
    STOPPED = "STOPPED"
    """Scored, and not taken further."""
    RETURNED = "RETURNED"
    """What worked on it is gone; tried again."""
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class StationDocument(Document):
    phase: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    """Null while it is under way."""


class LaneDocument(Document):
    worker: str | None
    """
    The host and the process that the lane is of; null for a lane of intervals that do not say where they were: those
    under way, those that ended without a score, scores that were known, and all of older versions.
    """


class IntervalDocument(Document):
    seq: int
    """Of the event that it began with."""
    trial: str
    number: int
    rung: int
    attempt: int
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    """Both as recorded; null while it is under way."""
    outcome: Outcome | None
    cached: bool
    """Whether the score was known and nothing was trained."""
    lane: int
    """Its place in `lanes`. No two intervals of a lane overlap."""


class TimelineDocument(Document):
    """Of phases and of the trials of the search; the finalists' long training is one phase."""

    phases: list[StationDocument]
    """As they began."""
    lanes: list[LaneDocument]
    """Of all intervals."""
    total: int
    """Intervals there are."""
    intervals: list[IntervalDocument]
    """As they began, at most 2000."""
    next_after: int
    """What to give as `after` for those that began later."""


@dataclass
class _Interval:
    seq: int
    trial: str
    number: int
    rung: int
    attempt: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    cached: bool = False
    worker: str | None = None
    lane: int = 0


def timeline(record: JobRecord, events: Iterable[Event], *, after: int, limit: int) -> TimelineDocument:
    """`events` are all of the job's that are of `KINDS`, in order."""
    intervals = _intervals(events)
    lanes = _lanes(intervals)
    shown = [one for one in intervals if one.seq > after][:limit]
    return TimelineDocument(
        phases=[
            StationDocument(
                phase=phase,
                started_at=known.started_at,
                ended_at=None if known.seconds is None else known.started_at + timedelta(seconds=known.seconds),
            )
            for phase, known in sorted(record.phases.items(), key=lambda pair: pair[1].started_at)
        ],
        lanes=[LaneDocument(worker=worker) for worker in lanes],
        total=len(intervals),
        intervals=[
            IntervalDocument(
                seq=one.seq,
                trial=one.trial,
                number=one.number,
                rung=one.rung,
                attempt=one.attempt,
                started_at=one.started_at,
                ended_at=one.ended_at,
                outcome=one.outcome,
                cached=one.cached,
                lane=one.lane,
            )
            for one in shown
        ],
        next_after=shown[-1].seq if shown else after,
    )


def _intervals(events: Iterable[Event]) -> list[_Interval]:
    found: list[_Interval] = []
    latest: dict[str, _Interval] = {}
    for event in events:
        data, trial = event.data, event.data["trial"]
        if event.kind == Kind.TRIAL_STARTED:
            began = _Interval(event.seq, trial, data["number"], data["rung"], data["attempt"], event.at)
            latest[trial] = began
            found.append(began)
            continue
        interval = latest.get(trial)
        if interval is None:
            continue  # it ended before anybody began with it
        if interval.ended_at is None:
            interval.ended_at, interval.outcome = event.at, _outcome(event)
            interval.cached, interval.worker = data.get("cached", False), data.get("worker")
        elif event.kind == Kind.TRIAL_STOPPED:
            interval.outcome = Outcome.STOPPED
    return found


def _outcome(event: Event) -> Outcome:
    if event.kind == Kind.TRIAL_SCORED:
        return Outcome.COMPLETED if event.data["last"] else Outcome.SCORED
    return Outcome(event.kind.removeprefix("TRIAL_"))


def _lanes(intervals: Sequence[_Interval]) -> list[str | None]:
    """
    Gives each interval its lane; the worker of every lane. Whatever does not say where it was goes to the first lane
    that is free, so there are as many such lanes as were ever needed at once.
    """
    lanes: list[str | None] = []
    of_worker: dict[str, int] = {}
    for interval in intervals:
        if interval.worker is not None:
            if interval.worker not in of_worker:
                of_worker[interval.worker] = len(lanes)
                lanes.append(interval.worker)
            interval.lane = of_worker[interval.worker]
    busy: list[tuple[datetime, int]] = []
    free: list[int] = []
    for interval in intervals:
        if interval.worker is not None:
            continue
        while busy and busy[0][0] <= interval.started_at:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            free.append(len(lanes))
            lanes.append(None)
        interval.lane = heapq.heappop(free)
        if interval.ended_at is not None:
            heapq.heappush(busy, (interval.ended_at, interval.lane))
    return lanes
