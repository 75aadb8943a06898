"""The jobs of one tenant: submitting, listing, watching and cancelling them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from ulid import ULID

from search.spec import JobSpec
from search.trial import Trial
from service.store import quotas
from service.store.accounts import noted
from service.store.engine import reading, writing
from service.store.ports import Caller, Cursor
from service.store.rows import end, find, records, tell, trials_of
from service.store.tables import events, jobs, now
from workers import rules
from workers.events import Event, Kind
from workers.ports import JobRecord, JobState
from workers.rules import Happening


class SqlJobs:
    """`service.store.ports.Jobs` of the caller's tenant, over a migrated database. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller) -> None:
        self._engine, self._caller, self._tenant = engine, caller, caller.tenant

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
            "tenant": self._tenant,
        }
        try:
            with writing(self._engine) as connection:
                former = self._former(connection, idempotency_key, fingerprint)
                if former is not None:
                    return former, False
                connection.execute(insert(jobs).values(row))
                noted(connection, self._caller, "jobs.create", job_id)
                tell(connection, job_id, [Happening(Kind.JOB_QUEUED, {})])
                record = records(connection, [self._find(connection, job_id)])[0]
                # Last, for where there are limits, others wait from here to the commit.
                quotas.admit(connection, self._tenant, spec)
                return record, True
        except IntegrityError:
            with reading(self._engine) as connection:
                former = self._former(connection, idempotency_key, fingerprint)
            if former is None:
                raise
            return former, False  # an equal submission was quicker

    def job(self, job_id: str) -> JobRecord:
        with reading(self._engine) as connection:
            return records(connection, [self._find(connection, job_id)])[0]

    def jobs(self, *, limit: int, before: Cursor | None = None, state: JobState | None = None) -> Sequence[JobRecord]:
        query = select(jobs).where(jobs.c.tenant == self._tenant)
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < before)
        if state is not None:
            query = query.where(jobs.c.state == state)
        with reading(self._engine) as connection:
            return records(connection, connection.execute(query).all())

    def trials(self, job_id: str) -> Sequence[Trial]:
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            return trials_of(connection, job_id)

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        query = (
            select(events).where(events.c.job_id == job_id, events.c.seq > after).order_by(events.c.seq).limit(limit)
        )
        with reading(self._engine) as connection:
            self._find(connection, job_id)
            return [Event(row.seq, row.kind, row.data, row.at) for row in connection.execute(query)]

    def request_cancel(self, job_id: str) -> JobRecord:
        with writing(self._engine) as connection:
            row = self._find(connection, job_id, lock=True)
            if not JobState(row.state).terminal and row.cancel_requested_at is None:
                tell(connection, job_id, [Happening(Kind.CANCEL_REQUESTED, {})], cancel_requested_at=now())
                noted(connection, self._caller, "jobs.cancel", job_id)
                if row.state == JobState.QUEUED:
                    end(connection, job_id, JobState.CANCELLED, rules.CANCELLED)
            return records(connection, [self._find(connection, job_id)])[0]

    def _find(self, connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
        return find(connection, job_id, tenant=self._tenant, lock=lock)

    def _former(self, connection: Connection, key: str | None, fingerprint: str | None) -> JobRecord | None:
        """The job that was submitted with this key, if one was."""
        if key is None:
            return None
        same = select(jobs).where(jobs.c.tenant == self._tenant, jobs.c.idempotency_key == key)
        row = connection.execute(same).one_or_none()
        if row is None:
            return None
        if row.fingerprint != fingerprint:
            raise rules.key_reused(key)
        return records(connection, [row])[0]
