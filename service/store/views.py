"""What is looked at: lists of jobs and trials by filter and order, and the few columns that a picture needs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, Text, and_, cast, select

from search.trial import Trial
from service.filters import Path
from service.store.conditions import (
    OF_THE_SCORE,
    Columns,
    Hint,
    beyond,
    condition,
    is_latest,
    job_columns,
    job_hint,
    latest,
    no_hint,
    ordering,
    trial_columns,
)
from service.store.engine import reading
from service.store.rows import find, records, trials_where
from service.store.standings import NOTHING, standings
from service.store.tables import events, jobs, logs, trials
from service.store.values import Caller, Listing, Page
from workers import rules
from workers.events import Event
from workers.ports import JobRecord, Level, LoggedLine
from workers.standings import Standing


class SqlViews:
    """`service.store.ports.Views` of the caller's tenant, over a migrated database. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller, known: Known | None = None) -> None:
        self._engine, self._tenant, self._known = engine, caller.tenant, known or Known()

    def jobs(self, listing: Listing) -> Page[tuple[JobRecord, Standing]]:
        columns = job_columns(self._engine.dialect)
        mine = select(jobs.c.id, jobs.c.events).where(jobs.c.tenant == self._tenant, jobs.c.deleted_at.is_(None))
        with reading(self._engine) as connection:
            page, after = _cut(connection, mine, listing, columns, job_hint)
            known = {row.id: one for row in page if (one := self._known.ended(row.id, row.events)) is not None}
            if unknown := [row.id for row in page if row.id not in known]:
                rows = connection.execute(select(jobs).where(jobs.c.id.in_(unknown)))
                found = records(connection, rows.all())
                standing = self._known.standings(found, partial(standings, connection))
                known |= {record.id: (record, one) for record, one in zip(found, standing, strict=True)}
            return Page([known[row.id] for row in page], after)

    def trials(self, job_id: str, listing: Listing) -> Page[Trial]:
        query = select(trials.c.id).where(trials.c.job_id == job_id)
        if any(field[0] in OF_THE_SCORE for field in listing.fields):
            query = query.select_from(trials.outerjoin(latest, is_latest))
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            page, after = _cut(connection, query, listing, trial_columns(self._engine.dialect))
            found = {trial.id: trial for trial in trials_where(connection, trials.c.id.in_([row.id for row in page]))}
            return Page([found[row.id] for row in page], after)

    def trial(self, job_id: str, trial_id: str) -> Trial:
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            found = trials_where(connection, and_(trials.c.id == trial_id, trials.c.job_id == job_id))
        if not found:
            raise rules.no_such_trial(job_id, trial_id)
        return found[0]

    def scored(self, job_id: str, fields: Sequence[Path], rung: int | None = None) -> Sequence[tuple[Any, ...]]:
        columns = trial_columns(self._engine.dialect)
        which = is_latest if rung is None else and_(latest.c.trial_id == trials.c.id, latest.c.rung == rung)
        query = select(*(trials.c.choices if field == ("choices",) else columns(field) for field in fields))
        query = query.select_from(trials.join(latest, which)).where(trials.c.job_id == job_id)
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            return [tuple(row) for row in connection.execute(query.order_by(trials.c.number))]

    def told(self, job_id: str, kinds: Sequence[str], *, number: int | None = None) -> Sequence[Event]:
        query = select(events.c.seq, events.c.kind, events.c.data, events.c.at)
        query = query.where(events.c.job_id == job_id, events.c.kind.in_(kinds)).order_by(events.c.seq)
        if number is not None:
            query = query.where(cast(events.c.data["trial"].as_string(), Text) == str(number))
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            return [Event(*row) for row in connection.execute(query)]

    def logs(
        self, job_id: str, *, after: int = 0, limit: int = 1000, trial: str | None = None, level: Level = Level.DEBUG
    ) -> Sequence[LoggedLine]:
        query = select(logs).where(logs.c.job_id == job_id, logs.c.seq > after).order_by(logs.c.seq).limit(limit)
        if trial is not None:
            query = query.where(logs.c.trial == trial)
        if level is not Level.DEBUG:
            query = query.where(logs.c.level.in_(level.and_above))
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            return [
                LoggedLine(row.seq, row.at, Level(row.level), row.logger, row.trial, row.message)
                for row in connection.execute(query)
            ]

    def _find(self, connection: Connection, job_id: str) -> None:
        find(connection, job_id, tenant=self._tenant)


class Known:
    """
    What was found of jobs before: their standings, and all of those that have ended. It holds until the next event,
    without which nothing changes. Of more than `most` the ones that were not asked for lately are forgotten. Threads
    may share it.
    """

    def __init__(self, most: int = 512) -> None:
        self._most, self._known = most, OrderedDict[str, tuple[JobRecord, Standing]]()
        self._lock = threading.Lock()

    def ended(self, job_id: str, events: int) -> tuple[JobRecord, Standing] | None:
        """A job that has ended as it is with so many events, if it is known."""
        found = self._find(job_id, events)
        return found if found is not None and found[0].state.terminal else None

    def standings(
        self, found: Sequence[JobRecord], ask: Callable[[Sequence[JobRecord]], Sequence[Standing]]
    ) -> list[Standing]:
        """Of these jobs; of those that are not known, as `ask` has it."""
        known = {record.id: one for record in found if (one := self._standing(record)) is not None}
        unknown = [record for record in found if record.id not in known]
        if unknown:
            for record, one in zip(unknown, ask(unknown), strict=True):
                known[record.id] = one
                self._keep(record, one)
        return [known[record.id] for record in found]

    def _standing(self, record: JobRecord) -> Standing | None:
        if not record.claims:
            return NOTHING
        known = self._find(record.id, record.events)
        return None if known is None else known[1]

    def _find(self, job_id: str, events: int) -> tuple[JobRecord, Standing] | None:
        with self._lock:
            known = self._known.get(job_id)
            if known is None or known[0].events != events:
                return None
            self._known.move_to_end(job_id)
            return known

    def _keep(self, record: JobRecord, standing: Standing) -> None:
        with self._lock:
            self._known[record.id] = record, standing
            self._known.move_to_end(record.id)
            if len(self._known) > self._most:
                self._known.popitem(last=False)


def _cut(
    connection: Connection, query: Select[Any], listing: Listing, column: Columns, hint: Hint = no_hint
) -> tuple[Sequence[Row[Any]], Any]:
    """What is asked of the rows on a page, and the place where it ends unless it is the last one."""
    if listing.where is not None:
        query = query.where(condition(listing.where, column, hint))
    if listing.after is not None:
        query = query.where(beyond(listing.after, listing.order, column))
    query = query.add_columns(*(column(field).label(f"key_{at}") for at, (field, _) in enumerate(listing.order)))
    rows = connection.execute(query.order_by(*ordering(listing.order, column)).limit(listing.limit + 1)).all()
    page = rows[: listing.limit]
    return page, tuple(page[-1][-len(listing.order) :]) if len(rows) > len(page) else None
