"""What the record says of the house as a whole: figures for Prometheus, counted by the database when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Insert, Text, and_, case, cast, func, select, type_coerce
from sqlalchemy.dialects import postgresql, sqlite

from service.store.tables import in_seconds, jobs, now, phases, scores, tallies, trials
from service.store.values import Figures, Spread, Tally
from workers.ports import JobState, Phase

CLAIM_BOUNDS = (0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
TRIAL_BOUNDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds; each is the largest value of its bucket."""
SETTLED_SECONDS = 10.0
"""A write is timed before it is committed. What is older than that is taken to be there, and is counted once."""
_LATEST = 20
"""Jobs whose correlations are looked at."""
_MICROSECONDS = 1_000_000


def figures(
    connection: Connection, since: datetime | None, reach_seconds: float, settled_seconds: float = SETTLED_SECONDS
) -> Figures:
    """As `Record.figures`; cheap with many jobs and scores: of what does not change only what is new is counted."""
    until = connection.execute(select(in_seconds(-settled_seconds))).scalar_one()
    if since is None:
        since = connection.execute(select(in_seconds(-settled_seconds - reach_seconds))).scalar_one()
    states = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    oldest = select(type_coerce(now(), BigInteger) - func.min(type_coerce(jobs.c.created_at, BigInteger))).where(
        jobs.c.ended_at.is_(None), jobs.c.state == JobState.QUEUED, jobs.c.pause_requested_at.is_(None)
    )
    trained, proposals, projected = _scored(connection, since, until)
    return Figures(
        until=until,
        jobs=dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in states},
        queue_seconds=max((connection.execute(oldest).scalar_one() or 0) / _MICROSECONDS, 0.0),
        waits=_waits(connection, since, until),
        trials=trained,
        proposals=proposals,
        projected=projected,
        tallies=dict.fromkeys(Tally, 0)
        | {Tally(name): value for name, value in connection.execute(select(tallies.c.name, tallies.c.value))},
        correlations=_correlations(connection),
    )


def count(connection: Connection, what: Tally) -> None:
    """
    Adds one. Others who count the same wait until the transaction ends, so this comes last in it.
    """
    row = {"name": what, "value": 1}
    statement: Insert
    if connection.dialect.name == "sqlite":
        of_sqlite = sqlite.insert(tallies).values(row)
        statement = of_sqlite.on_conflict_do_update(index_elements=["name"], set_={"value": tallies.c.value + 1})
    else:
        of_postgres = postgresql.insert(tallies).values(row)
        statement = of_postgres.on_conflict_do_update(index_elements=["name"], set_={"value": tallies.c.value + 1})
    connection.execute(statement)


def _waits(connection: Connection, since: datetime, until: datetime) -> Spread:
    """From submission to the first claim."""
    microseconds = type_coerce(jobs.c.started_at, BigInteger) - type_coerce(jobs.c.created_at, BigInteger)
    bucket = _bucket(microseconds, [round(bound * _MICROSECONDS) for bound in CLAIM_BOUNDS]).label("bucket")
    query = select(bucket, func.count(), func.sum(microseconds)).where(
        jobs.c.started_at > since, jobs.c.started_at <= until
    )
    counts, total = [0] * (len(CLAIM_BOUNDS) + 1), 0
    for place, number, summed in connection.execute(query.group_by(bucket)):
        counts[place] = number
        total += int(summed)
    return Spread(tuple(counts), total / _MICROSECONDS)


def _scored(connection: Connection, since: datetime, until: datetime) -> tuple[Spread, int, int]:
    """
    Seconds that trials were trained from rung to rung, and of the trials that came to their first score how many there
    are and how many had to be moved to fit the budget. What a trial took over from an earlier job took no time.
    """
    bucket = case((scores.c.cached, -1), else_=_bucket(scores.c.seconds, TRIAL_BOUNDS)).label("bucket")
    first = scores.c.rung == 0
    # Both were written by one program in one order of sites, so equal texts are equal choices.
    moved = and_(first, cast(trials.c.origin, Text) != cast(trials.c.choices, Text))
    query = (
        select(
            bucket,
            func.count(),
            func.sum(scores.c.seconds),
            func.sum(case((first, 1), else_=0)),
            func.sum(case((moved, 1), else_=0)),
        )
        .join(trials, trials.c.id == scores.c.trial_id)
        .where(scores.c.at > since, scores.c.at <= until)
        .group_by(bucket)
    )
    counts, total, proposals, projected = [0] * (len(TRIAL_BOUNDS) + 1), 0.0, 0, 0
    for place, number, summed, opened, changed in connection.execute(query):
        proposals, projected = proposals + int(opened), projected + int(changed)
        if place >= 0:
            counts[place] = number
            total += float(summed)
    return Spread(tuple(counts), total), proposals, projected


def _bucket(value: Any, bounds: Sequence[float]) -> Any:
    """The place of the first bound that is not below the value."""
    return case(*((value <= bound, place) for place, bound in enumerate(bounds)), else_=len(bounds))


def _correlations(connection: Connection) -> tuple[float, ...]:
    """Of each of the latest jobs: how well the first rung foretold the order after the finalists' training."""
    latest = select(jobs.c.id).where(jobs.c.state == JobState.SUCCEEDED)
    latest = latest.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(_LATEST)
    query = select(phases.c.result).where(phases.c.phase == Phase.FINALISTS, phases.c.job_id.in_(latest))
    found = []
    for (result,) in connection.execute(query):
        told = ((result or {}).get("evidence") or {}).get("correlations", ())
        known = [one for one in told if one["finalists"] and one["value"] is not None]
        if known:
            found.append(float(min(known, key=lambda one: one["steps"])["value"]))
    return tuple(sorted(found))
