"""What a tenant has used and may have, and whose turn it is when a job is given out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    type_coerce,
    update,
)

from search.spec import JobSpec
from service.store.tables import artifacts, jobs, now, tenants, uploads, usage
from service.store.values import BeyondQuota, Quota, QuotaSpent, Share
from workers.ports import JobState

Limits = Mapping[Quota, int | None]

_DAY_SECONDS = 86_400
_SOON_SECONDS = 30
"""After which somebody who has too many jobs in the queue, or too many bytes, may ask again."""
_DAILY = (Quota.CPU_SECONDS_PER_DAY, Quota.GPU_SECONDS_PER_DAY)


def limits_of(row: Row[Any]) -> Limits:
    """From a row of `tenants`."""
    return {quota: getattr(row, quota) for quota in Quota}


def shares(connection: Connection, tenant: str, quotas: Iterable[Quota] = tuple(Quota)) -> dict[Quota, Share]:
    row = connection.execute(select(tenants).where(tenants.c.name == tenant)).one()
    return {quota: Share(_USED[quota](connection, tenant), getattr(row, quota)) for quota in quotas}


def limited(tenant: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether there is anything that the tenant may not have as much of as there is."""
    return exists().where(tenants.c.name == tenant, or_(*(tenants.c[quota].is_not(None) for quota in Quota)))


def admit(connection: Connection, tenant: str, spec: JobSpec) -> None:
    """
    Whether the tenant, which has limits, may have the job that it has just submitted in this transaction. Nobody else
    is admitted in its name until the transaction ends.

    Raises:
        QuotaSpent: not now.
        BeyondQuota: never.
    """
    locked = select(tenants).where(tenants.c.name == tenant).with_for_update(key_share=True)
    limits = limits_of(connection.execute(locked).one())
    at_once = limits[Quota.CONCURRENT_TRIALS]
    if at_once is not None and spec.resources.concurrent_trials > at_once:
        message = f"the tenant `{tenant}` may have {at_once:,} trials going at once; write that or less"
        raise BeyondQuota(message, pointer="/resources/concurrent_trials", allowed=[str(at_once)])
    for quota in (Quota.QUEUED_JOBS, Quota.STORED_BYTES, *_DAILY):
        limit = limits[quota]
        if limit is None or (quota is Quota.GPU_SECONDS_PER_DAY and not spec.resources.gpus_per_trial):
            continue
        used = _USED[quota](connection, tenant) - (quota is Quota.QUEUED_JOBS)  # this very job is queued
        if used >= limit:
            retry = _until_tomorrow(connection) if quota in _DAILY else _SOON_SECONDS
            raise QuotaSpent(quota, f"{_SPENT[quota]} (limit {limit:,}, used {used:,.0f})", retry_seconds=retry)


def admit_bytes(connection: Connection, tenant: str, more: int, *, pointer: str = "") -> None:
    """
    Whether the tenant may store so many bytes beside what it has. If that is limited, nobody else is admitted in its
    name until the transaction ends.

    Raises:
        QuotaSpent: not now.
        BeyondQuota: never.
    """
    mine = select(tenants.c.stored_bytes).where(tenants.c.name == tenant)
    if connection.execute(mine).scalar_one() is None:
        return
    limit = connection.execute(mine.with_for_update(key_share=True)).scalar_one()
    if limit is None:
        return
    if more > limit:
        raise BeyondQuota(f"the tenant `{tenant}` may store {limit:,} bytes in all; upload less", pointer=pointer)
    used = _stored(connection, tenant)
    if used + more > limit:
        told = f"{_SPENT[Quota.STORED_BYTES]} (limit {limit:,}, used {used:,.0f}, asked for {more:,})"
        raise QuotaSpent(Quota.STORED_BYTES, told, retry_seconds=_SOON_SECONDS)


_SPENT = {
    Quota.QUEUED_JOBS: "Your tenant has as many jobs in the queue as it may have; wait until some have started",
    Quota.STORED_BYTES: "The artifacts and uploads of your tenant take up all the room it may have; delete "
    "uploads that no job needs, or ask the operator for more",
    Quota.CPU_SECONDS_PER_DAY: "Your tenant has used up its CPU-seconds of today (UTC); submit again tomorrow",
    Quota.GPU_SECONDS_PER_DAY: "Your tenant has used up its GPU-seconds of today (UTC); submit again tomorrow",
}


def charge(connection: Connection, row: Row[Any]) -> None:
    """
    Puts the time that the job has been on lease since the last charge to the day's account. The row is locked.

    What it reserves is charged, whether trials are using it or not: nobody else can have it. A driver that died is
    charged up to the end of its lease.
    """
    if row.charged_at is None:
        return
    moment = connection.execute(select(now())).scalar_one()
    until = moment if row.lease_until is None else min(moment, row.lease_until)
    seconds = max((until - row.charged_at) / timedelta(seconds=1), 0.0)
    if not seconds:
        return
    resources = row.spec["resources"]
    used = {
        "cpu_seconds": seconds * resources["concurrent_trials"] * resources["cpus_per_trial"],
        "gpu_seconds": seconds * resources["concurrent_trials"] * resources["gpus_per_trial"],
    }
    day = connection.execute(select(_TODAY)).scalar_one()
    same = and_(usage.c.job_id == row.id, usage.c.day == day)
    raised = {name: usage.c[name] + amount for name, amount in used.items()}
    if not connection.execute(update(usage).where(same).values(raised)).rowcount:
        connection.execute(insert(usage).values(job_id=row.id, day=day, **used))


class Turn(NamedTuple):
    tenant: str
    limited: bool


def turns(connection: Connection) -> list[Turn]:
    """
    The tenants that have a job to be given out, in the order of their turns: the one of whom the fewest trials are
    reserved comes first, and among equals the one that was not served for the longest time.
    """
    waiting = select(jobs.c.id).where(jobs.c.tenant == tenants.c.name, _free()).exists()
    going = select(jobs.c.tenant, _reserved().label("trials")).where(_leased()).group_by(jobs.c.tenant).subquery()
    limited = or_(*(tenants.c[quota].is_not(None) for quota in Quota))
    order = (func.coalesce(going.c.trials, 0), func.coalesce(type_coerce(tenants.c.served_at, BigInteger), 0))
    query = select(tenants.c.name, limited).outerjoin(going, going.c.tenant == tenants.c.name).where(waiting)
    return [Turn(name, bool(flag)) for name, flag in connection.execute(query.order_by(*order, tenants.c.name))]


def next_free(connection: Connection, order: Sequence[Turn]) -> Row[Any] | None:
    """
    The row of the job whose turn it is, locked; None when there is none, or others are just taking it.

    Of a tenant's jobs the one of highest priority, then the oldest. A tenant whose next job would take it over a limit
    is passed over, but for a job that only waits to be closed as cancelled, or to be laid down for a pause.
    """
    for place, (tenant, limited) in enumerate(order):
        limits: Limits = {}
        if limited:
            # Two dispatchers must not both fill the last place. Only the first lock is waited for: whoever waits for
            # none while holding one cannot be part of a circle.
            mine = select(tenants).where(tenants.c.name == tenant)
            locked = connection.execute(mine.with_for_update(key_share=True, skip_locked=place > 0)).one_or_none()
            if locked is None:
                continue
            limits = limits_of(locked)
        row = _first(connection, jobs.c.tenant == tenant)
        if row is not None and not _has_room(connection, limits, row):
            asked_to_end = (
                jobs.c.claims > 0,
                or_(jobs.c.cancel_requested_at.is_not(None), jobs.c.pause_requested_at.is_not(None)),
            )
            row = _first(connection, jobs.c.tenant == tenant, *asked_to_end)
        if row is not None:
            return row
    return None


def served(connection: Connection, tenant: str) -> None:
    connection.execute(update(tenants).where(tenants.c.name == tenant).values(served_at=now()))


def _first(connection: Connection, *which: ColumnElement[bool]) -> Row[Any] | None:
    return connection.execute(
        select(jobs)
        .where(_free(), *which)
        .order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
        .limit(1)
        .with_for_update(key_share=True, skip_locked=True)
    ).one_or_none()


def _has_room(connection: Connection, limits: Limits, row: Row[Any]) -> bool:
    at_once = limits.get(Quota.CONCURRENT_TRIALS)
    resources = row.spec["resources"]
    if at_once is not None and _trials_going(connection, row.tenant) + resources["concurrent_trials"] > at_once:
        return False
    for quota in _DAILY:
        limit = limits.get(quota)
        if limit is None or (quota is Quota.GPU_SECONDS_PER_DAY and not resources["gpus_per_trial"]):
            continue
        if _USED[quota](connection, row.tenant) >= limit:
            return False
    return True


def _free() -> ColumnElement[bool]:
    """Jobs that go on and are nobody's; of paused ones those whose driver died before it gave them back."""
    waiting = and_(jobs.c.lease_until.is_(None), jobs.c.pause_requested_at.is_(None))
    return and_(jobs.c.ended_at.is_(None), or_(waiting, jobs.c.lease_until <= now()))


def _leased() -> ColumnElement[bool]:
    return and_(jobs.c.lease_until.is_not(None), jobs.c.lease_until > now())


def _reserved() -> ColumnElement[int]:
    return func.sum(jobs.c.spec["resources", "concurrent_trials"].as_integer())


def _queued(connection: Connection, tenant: str) -> float:
    query = select(func.count()).select_from(jobs).where(jobs.c.tenant == tenant, jobs.c.state == JobState.QUEUED)
    return connection.execute(query.where(jobs.c.ended_at.is_(None))).scalar_one()  # for the index of open jobs


def _trials_going(connection: Connection, tenant: str) -> float:
    return connection.execute(select(_reserved()).where(jobs.c.tenant == tenant, _leased())).scalar_one() or 0


def _spent_today(column: str) -> Callable[[Connection, str], float]:
    def spent(connection: Connection, tenant: str) -> float:
        mine = select(func.sum(usage.c[column])).join(jobs, jobs.c.id == usage.c.job_id)
        return connection.execute(mine.where(usage.c.day == _TODAY, jobs.c.tenant == tenant)).scalar_one() or 0.0

    return spent


def _stored(connection: Connection, tenant: str) -> float:
    kept = and_(jobs.c.tenant == tenant, jobs.c.deleted_at.is_(None))
    made = select(func.sum(artifacts.c.bytes)).join(jobs, jobs.c.id == artifacts.c.job_id).where(kept)
    whole = and_(uploads.c.tenant == tenant, uploads.c.completed_at.is_not(None), uploads.c.deleted_at.is_(None))
    given = select(func.sum(uploads.c.bytes)).where(whole)
    return sum(float(connection.execute(query).scalar_one() or 0) for query in (made, given))


_USED: Mapping[Quota, Callable[[Connection, str], float]] = {
    Quota.QUEUED_JOBS: _queued,
    Quota.CONCURRENT_TRIALS: _trials_going,
    Quota.CPU_SECONDS_PER_DAY: _spent_today("cpu_seconds"),
    Quota.GPU_SECONDS_PER_DAY: _spent_today("gpu_seconds"),
    Quota.STORED_BYTES: _stored,
}
_TODAY = type_coerce(now(), BigInteger) // (_DAY_SECONDS * 1_000_000)
"""Days since 1970 in UTC, by the database's clock."""


def _until_tomorrow(connection: Connection) -> int:
    """Seconds, at least 1."""
    moment = connection.execute(select(now())).scalar_one()
    return _DAY_SECONDS - int(moment.timestamp()) % _DAY_SECONDS
