"""
The worker's side of the record, in SQL.

Every write locks the row of its job first and compares the claim's token, so the writes to a job happen one after the
other and its events are numbered without gaps. On SQLite the lock is the whole database's, for a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Row,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    type_coerce,
    update,
)

from search.errors import StaleClaim, StorageFull, StoreUnavailable
from search.trial import Score, State, Trial
from service.store import figures, quotas
from service.store.engine import reading, writing
from service.store.rows import OFF_LEASE, end, find, put_trial, records, tell, trials_of
from service.store.tables import Moment, artifacts, in_seconds, jobs, logs, now, phases, scores, trials
from service.store.values import Tally
from workers import rules
from workers.events import Kind
from workers.ids import new_id
from workers.ports import Artifact, Claim, JobRecord, JobState, Line, Phase, Wish
from workers.rules import Happening


class SqlLedger:
    """
    `workers.ports.Ledger` over a migrated database. Threads may share it.

    It knows no tenants, but that each has its turn when jobs are given out, within its limits.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(self, owner: str, lease_seconds: float) -> Claim | None:
        while True:
            with reading(self._engine) as connection:
                turns = quotas.turns(connection)
            if not turns:
                return None  # an idle dispatcher asks twice a second and need not lock anything for it
            with writing(self._engine) as connection:
                given = None
                row = quotas.next_free(connection, turns)
                if row is None:
                    return None
                token = row.token + 1
                expired = _take_over(connection, row)
                if row.claims and row.cancel_requested_at is not None:
                    end(connection, row.id, JobState.CANCELLED, rules.CANCELLED, token=token)
                elif row.pause_requested_at is not None:
                    tell(connection, row.id, [Happening(Kind.JOB_PAUSED, {})], token=token, **OFF_LEASE)
                elif rules.exhausted(row.spec, row.fruitless):
                    end(connection, row.id, JobState.FAILED, rules.given_up(row.fruitless), token=token)
                else:
                    _give(connection, row, token, owner, lease_seconds)
                    given = Claim(row.id, token, row.spec, row.traceparent or "")
                if expired:
                    figures.count(connection, Tally.LEASES_EXPIRED)
            if given is not None:
                return given

    def renew(self, claim: Claim, lease_seconds: float) -> Wish:
        with self._refusing() as connection:
            row = _owned(connection, claim)
            if row.lease_until is not None:
                quotas.charge(connection, row)
                _set(connection, claim, lease_until=in_seconds(lease_seconds), charged_at=now())
            return rules.wish(cancel=row.cancel_requested_at is not None, pause=row.pause_requested_at is not None)

    def release(self, claim: Claim) -> None:
        with self._refusing() as connection:
            quotas.charge(connection, _owned(connection, claim))
            _set(connection, claim, **OFF_LEASE)

    def rest(self, claim: Claim) -> None:
        with self._refusing() as connection:
            row = _owned(connection, claim)
            if row.lease_until is None:
                return
            quotas.charge(connection, row)
            happenings = []
            for trial in trials_of(connection, row.id):
                if trial.state is State.RUNNING:
                    changed = rules.rested(trial)
                    put_trial(connection, changed.trial)
                    happenings.append(changed.happening)
            if row.pause_requested_at is not None and row.cancel_requested_at is None:
                happenings.append(Happening(Kind.JOB_PAUSED, {}))
            tell(connection, row.id, happenings, fruitless=max(row.fruitless - 1, 0), **OFF_LEASE)
            if row.cancel_requested_at is not None:
                end(connection, row.id, JobState.CANCELLED, rules.CANCELLED)

    def enter(self, claim: Claim, phase: Phase) -> None:
        with self._held(claim) as (connection, row):
            state = rules.next_state(JobState(row.state), phase)
            if _phase(connection, claim, phase) is None:
                connection.execute(insert(phases).values(job_id=claim.job_id, phase=phase, started_at=now()))
            tell(connection, claim.job_id, [rules.entered(phase)], state=state, phase=phase)

    def finish(self, claim: Claim, phase: Phase, result: Mapping[str, Any], *, revision: int | None = None) -> None:
        with self._held(claim) as (connection, row):
            known = _phase(connection, claim, phase)
            if known is None:
                raise rules.never_entered(phase)
            if known.result is not None:
                return
            if revision is not None and revision != row.revision:
                raise rules.outdated(claim.job_id, revision, row.revision)
            document = rules.plain(result)
            connection.execute(
                update(phases)
                .where(phases.c.job_id == claim.job_id, phases.c.phase == phase)
                .values(result=document, ended_at=now())
            )
            tell(connection, claim.job_id, [rules.finished(phase, document)], fruitless=0)

    def job(self, job_id: str) -> JobRecord:
        with reading(self._engine) as connection:
            return records(connection, [find(connection, job_id)])[0]

    def trials(self, job_id: str) -> Sequence[Trial]:
        with reading(self._engine) as connection:
            find(connection, job_id)
            return trials_of(connection, job_id)

    def note(self, claim: Claim, kind: str, data: Mapping[str, Any]) -> None:
        with self._held(claim) as (connection, _):
            tell(connection, claim.job_id, [Happening(kind, data)])

    def log(self, claim: Claim, lines: Sequence[Line]) -> None:
        if not lines:
            return
        mine = logs.c.job_id == claim.job_id
        with self._refusing() as connection:
            _owned(connection, claim)
            last = connection.execute(select(func.coalesce(func.max(logs.c.seq), 0)).where(mine)).scalar_one()
            at = type_coerce(type_coerce(now(), BigInteger) - bindparam("age_us", type_=BigInteger), Moment)
            rows = [
                {
                    "seq": seq,
                    "age_us": round(line.age * 1e6),
                    "level": line.level,
                    "logger": line.logger,
                    "trial": line.trial,
                    "message": line.message,
                }
                for seq, line in enumerate(map(rules.cut_line, lines), start=last + 1)
            ]
            connection.execute(insert(logs).values(job_id=claim.job_id, at=at), rows)
            connection.execute(delete(logs).where(mine, logs.c.seq <= last + len(rows) - rules.LOG_LINES))

    def close(self, claim: Claim, state: JobState, reason: str = "") -> None:
        with self._held(claim) as (connection, row):
            quotas.charge(connection, row)
            end(connection, claim.job_id, state, reason)

    def keep(self, claim: Claim, name: str, artifact: Artifact, media_type: str) -> None:
        with self._held(claim) as (connection, _):
            row = {"job_id": claim.job_id, "name": name, "media_type": media_type, **asdict(artifact)}
            same = and_(artifacts.c.job_id == claim.job_id, artifacts.c.name == name)
            replaced = connection.execute(update(artifacts).where(same).values(row)).rowcount
            if not replaced:
                connection.execute(insert(artifacts).values(row))
            tell(connection, claim.job_id, [rules.kept(name, artifact)])

    def open_trial(self, claim: Claim, trial: Trial) -> Trial:
        with self._held(claim) as (connection, _):
            same = select(trials.c.id).where(trials.c.job_id == claim.job_id, trials.c.key == trial.key)
            known = connection.execute(same).scalar_one_or_none()
            if known is not None:
                return _trial(connection, claim, known)
            count = select(func.count()).select_from(trials).where(trials.c.job_id == claim.job_id)
            changed = rules.opened(trial, new_id("trial"), connection.execute(count).scalar_one())
            row = {column.name: getattr(changed.trial, column.name) for column in trials.c if column.name != "job_id"}
            connection.execute(insert(trials).values(job_id=claim.job_id, **row))
            tell(connection, claim.job_id, [changed.happening])
            return changed.trial

    def start_trial(self, claim: Claim, trial_id: str) -> Trial:
        with self._held(claim) as (connection, _):
            return _put(connection, claim, rules.started(_trial(connection, claim, trial_id)))

    def score_trial(self, claim: Claim, trial_id: str, score: Score, *, last: bool, worker: str | None = None) -> Trial:
        with self._held(claim) as (connection, _):
            trial = _trial(connection, claim, trial_id)
            changed = rules.scored(trial, score, last=last, worker=worker)
            if changed is None:
                return trial
            connection.execute(insert(scores).values(trial_id=trial_id, at=now(), **asdict(score)))
            return _put(connection, claim, changed, fruitless=0)

    def return_trial(self, claim: Claim, trial_id: str, reason: str) -> Trial:
        with self._held(claim) as (connection, _):
            return _put(connection, claim, rules.returned(_trial(connection, claim, trial_id), reason))

    def close_trial(self, claim: Claim, trial_id: str, state: State, reason: str = "") -> Trial:
        with self._held(claim) as (connection, _):
            return _put(connection, claim, rules.closed(_trial(connection, claim, trial_id), state, reason))

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction in which `claim` is the latest of a job that goes on, and nobody else writes to the job."""
        with self._refusing() as connection:
            row = _owned(connection, claim)
            if row.ended_at is not None:
                raise rules.at_its_end(claim.job_id, JobState(row.state))
            yield connection, row

    @contextmanager
    def _refusing(self) -> Iterator[Connection]:
        """A transaction in which a claim that is over is refused; each refusal is counted, in one of its own."""
        try:
            with writing(self._engine) as connection:
                yield connection
        except StaleClaim:
            with suppress(StoreUnavailable, StorageFull), writing(self._engine) as connection:
                figures.count(connection, Tally.STALE_WRITES)
            raise


def _owned(connection: Connection, claim: Claim) -> Row[Any]:
    row = find(connection, claim.job_id, lock=True)
    if row.token != claim.token:
        raise rules.stale(claim)
    return row


def _set(connection: Connection, claim: Claim, **changes: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == claim.job_id).values(**changes))


def _take_over(connection: Connection, row: Row[Any]) -> bool:
    """Puts in order what a driver that is gone has left behind; whether it had let its lease run out."""
    quotas.charge(connection, row)
    expired = row.lease_until is not None
    happenings = [Happening(Kind.LEASE_EXPIRED, {})] if expired else []
    if row.claims:
        for trial in trials_of(connection, row.id):
            if trial.state is State.RUNNING:
                changed = rules.returned(trial, rules.DRIVER_DIED)
                put_trial(connection, changed.trial)
                happenings.append(changed.happening)
    if happenings:
        tell(connection, row.id, happenings)
    return expired


def _give(connection: Connection, row: Row[Any], token: int, owner: str, lease_seconds: float) -> None:
    quotas.served(connection, row.tenant)
    first = {"state": JobState.PREPARING, "started_at": now()} if row.state == JobState.QUEUED else {}
    tell(
        connection,
        row.id,
        [Happening(Kind.JOB_CLAIMED, {"claim": row.claims + 1})],
        owner=owner,
        token=token,
        claims=row.claims + 1,
        fruitless=row.fruitless + 1,
        lease_until=in_seconds(lease_seconds),
        charged_at=now(),
        **first,
    )


def _phase(connection: Connection, claim: Claim, phase: Phase) -> Row[Any] | None:
    query = select(phases).where(phases.c.job_id == claim.job_id, phases.c.phase == phase)
    return connection.execute(query).one_or_none()


def _trial(connection: Connection, claim: Claim, trial_id: str) -> Trial:
    found = trials_of(connection, claim.job_id, trial_id=trial_id)
    if not found:
        raise rules.no_such_trial(claim.job_id, trial_id)
    return found[0]


def _put(connection: Connection, claim: Claim, changed: rules.Changed, **changes: Any) -> Trial:
    put_trial(connection, changed.trial)
    tell(connection, claim.job_id, [changed.happening], **changes)
    return changed.trial
