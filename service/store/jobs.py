"""The service's side of the record: submitting, listing, watching and cancelling jobs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, func, insert, select, text, tuple_
from sqlalchemy.exc import IntegrityError
from ulid import ULID

from search.spec import JobSpec
from search.trial import Trial
from service.store.engine import current_revision, reading, writing
from service.store.ports import Cursor
from service.store.rows import end, find, records, tell, trials_of
from service.store.tables import events, jobs, now
from workers import rules
from workers.events import Event, Kind
from workers.ports import JobRecord, JobState
from workers.rules import Happening


class SqlJobs:
    """`service.store.ports.Jobs` over a migrated database. Threads may share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(
        self, spec: JobSpec, *, idempotency_key: str | None = None, fingerprint: str | None = None
    ) -> tuple[JobRecord, bool]:
        document = rules.plain(spec.model_dump(mode="json"))
        job_id = f"job_{ULID()}".lower()
        row = {
            "id": job_id,
            "state": JobState.QUEUED,
            "reason": "",
            "spec": document,
            "priority": spec.priority,
            "created_at": now(),
            "token": 0,
            "claims": 0,
            "fruitless": 0,
            "events": 0,
            "idempotency_key": idempotency_key,
            "fingerprint": fingerprint,
        }
        try:
            with writing(self._engine) as connection:
                former = _former(connection, idempotency_key, fingerprint)
                if former is not None:
                    return former, False
                connection.execute(insert(jobs).values(row))
                tell(connection, job_id, [Happening(Kind.JOB_QUEUED, {})])
                return records(connection, [find(connection, job_id)])[0], True
        except IntegrityError:
            with reading(self._engine) as connection:
                former = _former(connection, idempotency_key, fingerprint)
            if former is None:
                raise
            return former, False  # an equal submission was quicker

    def job(self, job_id: str) -> JobRecord:
        with reading(self._engine) as connection:
            return records(connection, [find(connection, job_id)])[0]

    def jobs(self, *, limit: int, before: Cursor | None = None, state: JobState | None = None) -> Sequence[JobRecord]:
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < before)
        if state is not None:
            query = query.where(jobs.c.state == state)
        with reading(self._engine) as connection:
            return records(connection, connection.execute(query).all())

    def trials(self, job_id: str) -> Sequence[Trial]:
        with reading(self._engine) as connection:
            find(connection, job_id)
            return trials_of(connection, job_id)

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        query = (
            select(events).where(events.c.job_id == job_id, events.c.seq > after).order_by(events.c.seq).limit(limit)
        )
        with reading(self._engine) as connection:
            find(connection, job_id)
            return [Event(row.seq, row.kind, row.data, row.at) for row in connection.execute(query)]

    def request_cancel(self, job_id: str) -> JobRecord:
        with writing(self._engine) as connection:
            row = find(connection, job_id, lock=True)
            if not JobState(row.state).terminal and row.cancel_requested_at is None:
                tell(connection, job_id, [Happening(Kind.CANCEL_REQUESTED, {})], cancel_requested_at=now())
                if row.state == JobState.QUEUED:
                    end(connection, job_id, JobState.CANCELLED, rules.CANCELLED)
            return records(connection, [find(connection, job_id)])[0]

    def counts(self) -> dict[JobState, int]:
        with reading(self._engine) as connection:
            found = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
            return dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in found}

    def ping(self) -> None:
        with reading(self._engine) as connection:
            connection.execute(text("SELECT 1"))

    def schema_version(self) -> str | None:
        return current_revision(self._engine)


def _former(connection: Connection, key: str | None, fingerprint: str | None) -> JobRecord | None:
    """The job that was submitted with this key, if one was."""
    if key is None:
        return None
    row = connection.execute(select(jobs).where(jobs.c.idempotency_key == key)).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise rules.key_reused(key)
    return records(connection, [row])[0]
