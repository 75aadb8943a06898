"""Rows and values: what a transaction reads becomes the values of `workers.ports`, and events get their numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, bindparam, insert, select, update

from search.trial import Score, State, Trial
from service.store import outbox, quotas, standings
from service.store.tables import artifacts, events, jobs, now, phases, scores, trials
from workers import rules
from workers.ports import Artifact, JobRecord, JobState, Phase, PhaseRecord, StoredFile
from workers.rules import Happening

OFF_LEASE: Mapping[str, None] = {"lease_until": None, "charged_at": None}
"""What changes in the row of a job that no driver has any more."""


def find(connection: Connection, job_id: str, *, tenant: str | None = None, lock: bool = False) -> Row[Any]:
    """
    The job's row; with `lock` nobody else writes to the job until the transaction ends.

    Raises:
        NotFound: there is no such job, or `tenant` is given and it belongs to another or was deleted.
    """
    query = select(jobs).where(jobs.c.id == job_id)
    if tenant is not None:
        query = query.where(jobs.c.tenant == tenant, jobs.c.deleted_at.is_(None))
    if lock:
        query = query.with_for_update(key_share=True)  # a stronger lock would deadlock with foreign keys
    row = connection.execute(query).one_or_none()
    if row is None:
        raise rules.no_such_job(job_id)
    return row


_GIVEN = (
    *("id", "tenant", "state", "reason", "spec", "priority", "token", "claims", "fruitless", "idempotency_key"),
    *("fingerprint", "parent", "traceparent"),
)
"""What is known of a job before it is on record."""
_SUBMITTER = bindparam("submitter", type_=Text)
_NEW_JOB = (
    insert(jobs)
    .values(events=1, created_at=now())
    .returning(
        *(column for column in jobs.c if column.name not in _GIVEN),
        outbox.heard(_SUBMITTER).label("heard"),
        quotas.limited(_SUBMITTER).label("limited"),
    )
)
_NEW_EVENT = insert(events).values(at=now())


def put_job(connection: Connection, values: Mapping[str, Any], happening: Happening) -> tuple[JobRecord, bool]:
    """
    A new job with its first event, and whether its tenant has limits. `values` are those of `_GIVEN`.

    As few statements as there can be, made once, and nothing comes back that is known: how many jobs a server takes
    hangs on that.
    """
    made = connection.execute(_NEW_JOB, {**values, _SUBMITTER.key: values["tenant"]}).one()
    row = SimpleNamespace(**values, **made._mapping)
    _append(connection, row, [happening], heard=made.heard)
    return _record(row, {}, []), made.limited


def records(connection: Connection, rows: Sequence[Row[Any]]) -> list[JobRecord]:
    """Jobs with their phases and files, in the order of their rows."""
    ids = [row.id for row in rows if row.claims]  # the others have come to nothing yet
    if not ids:
        return [_record(row, {}, []) for row in rows]
    walked: dict[str, dict[Phase, PhaseRecord]] = defaultdict(dict)
    for row in connection.execute(select(phases).where(phases.c.job_id.in_(ids))):
        seconds = None if row.ended_at is None else max((row.ended_at - row.started_at).total_seconds(), 0.0)
        walked[row.job_id][Phase(row.phase)] = PhaseRecord(row.started_at, seconds, row.result)
    files: dict[str, list[StoredFile]] = defaultdict(list)
    for row in connection.execute(select(artifacts).where(artifacts.c.job_id.in_(ids))):
        artifact = Artifact(row.key, row.bytes, row.sha256)
        files[row.job_id].append(StoredFile(row.name, row.media_type, artifact))
    return [_record(row, walked[row.id], files[row.id]) for row in rows]


def _record(
    row: Row[Any] | SimpleNamespace, walked: Mapping[Phase, PhaseRecord], files: Sequence[StoredFile]
) -> JobRecord:
    return JobRecord(
        id=row.id,
        state=JobState(row.state),
        reason=row.reason,
        spec=row.spec,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        cancel_requested=row.cancel_requested_at is not None,
        pause_requested=row.pause_requested_at is not None,
        leased=row.lease_until is not None,
        claims=row.claims,
        revision=row.revision,
        events=row.events,
        parent=row.parent,
        phase=None if row.phase is None else Phase(row.phase),
        phases={phase: walked[phase] for phase in Phase if phase in walked},
        files=sorted(files, key=lambda file: file.name),
    )


def trials_of(connection: Connection, job_id: str, *, trial_id: str | None = None) -> list[Trial]:
    """The job's trials by number, or only the one named."""
    which = trials.c.job_id == job_id
    if trial_id is not None:
        which &= trials.c.id == trial_id
    return trials_where(connection, which)


def trials_where(connection: Connection, which: ColumnElement[bool]) -> list[Trial]:
    """By number."""
    reached: dict[str, list[Score]] = defaultdict(list)
    joined = select(scores).join(trials, trials.c.id == scores.c.trial_id).where(which).order_by(scores.c.rung)
    for row in connection.execute(joined):
        reached[row.trial_id].append(Score(row.rung, row.step, row.accuracy, row.kl, row.seconds, row.cached))
    return [
        Trial(
            id=row.id,
            number=row.number,
            key=row.key,
            choices=row.choices,
            origin=row.origin,
            cost=row.cost,
            state=State(row.state),
            attempt=row.attempt,
            reason=row.reason,
            scores=tuple(reached[row.id]),
            extra=row.extra,
        )
        for row in connection.execute(select(trials).where(which).order_by(trials.c.number))
    ]


def tell(connection: Connection, job_id: str, happenings: Iterable[Happening], **changes: Any) -> None:
    """Changes the job's row and appends events with the next numbers, all in the caller's transaction."""
    told = list(happenings)
    numbered = (
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(events=jobs.c.events + len(told), **changes)
        .returning(jobs.c.id, jobs.c.tenant, jobs.c.state, jobs.c.reason, jobs.c.events)
    )
    _append(connection, connection.execute(numbered).one(), told)


def _append(
    connection: Connection, job: Row[Any] | SimpleNamespace, told: Sequence[Happening], *, heard: bool = True
) -> None:
    """
    The latest events of a job, in whose row they are counted already. `heard` is false where it is known that no
    webhook of the tenant wants to be told of any.
    """
    for seq, (kind, data) in enumerate(told, start=job.events - len(told) + 1):
        row = {"job_id": job.id, "seq": seq, "kind": str(kind), "data": rules.plain(data)}
        if heard and kind in outbox.KINDS:
            at = connection.execute(_NEW_EVENT.returning(events.c.at), row).scalar_one()
            outbox.post(connection, job, seq, str(kind), at)
        else:
            connection.execute(_NEW_EVENT, row)


def put_trial(connection: Connection, trial: Trial) -> None:
    """Writes what may have changed of a trial: its state, attempt and reason."""
    connection.execute(
        update(trials)
        .where(trials.c.id == trial.id)
        .values(state=trial.state, attempt=trial.attempt, reason=trial.reason)
    )


def end(connection: Connection, job_id: str, state: JobState, reason: str, **changes: Any) -> None:
    """
    Closes the job and what is open of its trials, and keeps what they come to.

    Raises:
        IllegalTransition: `state` is no end.
    """
    ending, happenings = rules.closed_job(state, reason), []
    for trial in trials_of(connection, job_id):
        if not trial.state.terminal:
            changed = rules.closed(trial, State.CANCELLED, f"the job is {state}")
            put_trial(connection, changed.trial)
            happenings.append(changed.happening)
    tell(connection, job_id, [*happenings, ending], state=state, reason=reason, ended_at=now(), **OFF_LEASE, **changes)
    standings.keep(connection, records(connection, [find(connection, job_id)]))
