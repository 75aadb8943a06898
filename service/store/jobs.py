"""The jobs of one tenant: submitting, watching and cancelling them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update
from sqlalchemy.exc import IntegrityError

from search.spec import JobSpec
from service.store import quotas
from service.store.accounts import noted
from service.store.engine import reading, writing
from service.store.rows import end, find, put_job, records, tell
from service.store.standings import standings
from service.store.tables import events, jobs, now
from service.store.uploads import hold
from service.store.values import Caller
from service.store.views import Known
from workers import rules
from workers.events import Event, Kind
from workers.ids import new_id
from workers.ports import JobRecord, JobState, Phase
from workers.rules import Happening
from workers.standings import Standing

_LARGEST_INTEGER = 2**31 - 1
"""In a column of Postgres. It refuses to compare one with more, and no event has that number."""


class SqlJobs:
    """`service.store.ports.Jobs` of the caller's tenant, over a migrated database. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller, known: Known | None = None) -> None:
        self._engine, self._caller, self._tenant = engine, caller, caller.tenant
        self._known = known or Known()

    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        parent: str | None = None,
        action: str = "jobs.create",
    ) -> tuple[JobRecord, bool]:
        document = rules.plain(spec.model_dump(mode="json"))
        job_id = new_id("job")
        row = {
            "id": job_id,
            "state": JobState.QUEUED,
            "reason": "",
            "spec": document,
            "priority": spec.priority,
            "token": 0,
            "claims": 0,
            "fruitless": 0,
            "idempotency_key": idempotency_key,
            "fingerprint": fingerprint,
            "tenant": self._tenant,
            "parent": parent,
            "traceparent": self._caller.traceparent or None,
        }
        try:
            with writing(self._engine) as connection:
                former = self._former(connection, idempotency_key, fingerprint)
                if former is not None:
                    return former, False
                hold(connection, self._tenant, document["teacher"])
                record, limited = put_job(connection, row, Happening(Kind.JOB_QUEUED, {}))
                noted(connection, self._caller, action, job_id)
                if limited:
                    # Last: others wait from here to the commit. Who has no limits needs not wait for anybody.
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
            return self._record(connection, job_id)

    def standings(self, found: Sequence[JobRecord]) -> Sequence[Standing]:
        return self._known.standings(found, self._counted)

    def _counted(self, found: Sequence[JobRecord]) -> Sequence[Standing]:
        with reading(self._engine) as connection:
            return standings(connection, found)

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        after = min(after, _LARGEST_INTEGER)
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
                self._ask(connection, row, "jobs.cancel", [Kind.CANCEL_REQUESTED], cancel_requested_at=now())
                if row.lease_until is None:
                    end(connection, job_id, JobState.CANCELLED, rules.CANCELLED)
            return self._record(connection, job_id)

    def request_pause(self, job_id: str) -> JobRecord:
        with writing(self._engine) as connection:
            row = self._pausable(connection, job_id)
            if row.pause_requested_at is None:
                told = [Kind.PAUSE_REQUESTED] + [Kind.JOB_PAUSED] * (row.lease_until is None)
                self._ask(connection, row, "jobs.pause", told, pause_requested_at=now())
            return self._record(connection, job_id)

    def resume(self, job_id: str) -> JobRecord:
        with writing(self._engine) as connection:
            row = self._pausable(connection, job_id)
            if row.pause_requested_at is not None:
                self._ask(connection, row, "jobs.resume", [Kind.JOB_RESUMED], pause_requested_at=None)
            return self._record(connection, job_id)

    def change(self, job_id: str, spec: JobSpec, *, revision: int) -> JobRecord:
        document = rules.plain(spec.model_dump(mode="json"))
        with writing(self._engine) as connection:
            row = self._find(connection, job_id, lock=True)
            if row.revision != revision:
                raise rules.outdated(job_id, revision, row.revision)
            search = self._record(connection, job_id).phases.get(Phase.SEARCH)
            happening = rules.changed_spec(
                JobState(row.state),
                row.spec,
                document,
                in_search=search is not None,
                searched=search is not None and search.result is not None,
            )
            if happening is not None:
                changes = {"spec": document, "priority": spec.priority, "revision": row.revision + 1}
                tell(connection, job_id, [happening], **changes)
                noted(connection, self._caller, "jobs.update", job_id)
            return self._record(connection, job_id)

    def delete(self, job_id: str) -> JobRecord:
        with writing(self._engine) as connection:
            row = self._find(connection, job_id, lock=True)
            rules.may_be_deleted(job_id, JobState(row.state))
            found = self._record(connection, job_id)
            # Its key is free again: whoever submits anew wants a job, not one that is gone.
            gone = update(jobs).where(jobs.c.id == job_id)
            connection.execute(gone.values(deleted_at=now(), idempotency_key=None, fingerprint=None))
            noted(connection, self._caller, "jobs.delete", job_id)
            return found

    def _pausable(self, connection: Connection, job_id: str) -> Row[Any]:
        row = self._find(connection, job_id, lock=True)
        rules.may_pause(job_id, JobState(row.state), cancel_requested=row.cancel_requested_at is not None)
        return row

    def _ask(self, connection: Connection, row: Row[Any], action: str, told: Sequence[Kind], **changes: Any) -> None:
        """Puts on record what the user wants of the job now."""
        happenings = [Happening(kind, {}) for kind in told]
        tell(connection, row.id, happenings, revision=row.revision + 1, **changes)
        noted(connection, self._caller, action, row.id)

    def _record(self, connection: Connection, job_id: str) -> JobRecord:
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
