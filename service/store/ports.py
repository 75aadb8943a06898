"""
What the service needs of the record; a database fills it (`service.store.record`).

What belongs to a tenant is reached through `Record.jobs` and `Record.account` alone, and both demand a `Caller`: there
is no way to ask for a job without saying whose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from search.errors import StillhouseError, UserError
from search.spec import JobSpec
from search.trial import Trial
from workers.events import Event
from workers.ports import JobRecord, JobState

Cursor = tuple[datetime, str]
"""A place in a list that is sorted by time: `(at, id)` of what a page ended with."""

DEFAULT = "default"
"""The tenant of whoever runs the server. What was on record before there were tenants belongs to it."""


class Scope(StrEnum):
    """What a key is good for, each for all that those before it are."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def covers(self, needed: Scope) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and for whom. `actor` and `request_id` are what the audit keeps of it."""

    tenant: str
    actor: str
    scope: Scope
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Once:
    """How a request that shall be carried out once, however often it is sent, is known again."""

    route: str
    """The operation, as the API's description names it. The same key means nothing on another."""
    key: str
    fingerprint: str
    """Equal for requests that ask for the same."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is on record of a key; the key itself is not. Times are aware, UTC."""

    id: str
    tenant: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Within a minute."""


class Quota(StrEnum):
    """What a tenant can be held to."""

    QUEUED_JOBS = "queued_jobs"
    CONCURRENT_TRIALS = "concurrent_trials"
    """What the jobs under way reserve: the sum of their `resources.concurrent_trials`."""
    CPU_SECONDS_PER_DAY = "cpu_seconds_per_day"
    """Seconds on lease times what the job reserves; the day is that of UTC."""
    GPU_SECONDS_PER_DAY = "gpu_seconds_per_day"
    STORED_BYTES = "stored_bytes"
    """Of all artifacts of its jobs."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a quota is used, and how much is allowed (None: as much as there is)."""

    used: float
    limit: int | None


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    created_at: datetime
    limits: Mapping[Quota, int | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the audit: who did what to what."""

    id: str
    actor: str
    action: str
    object: str
    request_id: str
    at: datetime


class QuotaSpent(StillhouseError):
    """The tenant has what it may have; `code` names the quota. It may try again after `retry_seconds`."""

    def __init__(self, quota: Quota, message: str, *, retry_seconds: int) -> None:
        super().__init__(message)
        self.code, self.retry_seconds = f"QUOTA_{quota.name}", retry_seconds


class BeyondQuota(UserError):
    """The job reserves more than its tenant may ever have."""

    code = "BEYOND_QUOTA"


class Tally(StrEnum):
    """What is counted on record, because the processes where it happens do not live to tell."""

    LEASES_EXPIRED = "leases_expired"
    STALE_WRITES = "stale_writes"
    """Writes of drivers that had lost their job to another; they were refused."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How many values fell into each bucket of a histogram, the last without bound, and their sum."""

    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The house as a whole, all tenants together. The second half is what has happened since one was asked for last."""

    jobs: Mapping[JobState, int]
    """Every state is there."""
    queue_seconds: float
    """How long the oldest job that waits has waited; 0 when none does."""
    correlations: Sequence[float]
    """Of the latest jobs that succeeded, from the least: how well short training foretold long training."""
    tallies: Mapping[Tally, int]
    until: datetime
    """Up to when the following were counted."""
    waits: Spread
    """Seconds from submission to the first claim."""
    trials: Spread
    """Seconds that trials were trained, from rung to rung."""
    proposals: int
    """Trials that came to their first score."""
    projected: int
    """Those of them that are not what the strategy had proposed, but the nearest to it that keeps the budget."""


@dataclass(frozen=True, slots=True)
class Connections:
    """To the database, of this process."""

    used: int
    most: int


class Jobs(Protocol):
    """
    The jobs of one tenant, as its users see them. Those of others are not there. What a method returns is a value:
    changing it changes nothing on record.

    Every method may raise `StoreUnavailable`, and those that write `StorageFull`.
    """

    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        parent: str | None = None,
        action: str = "jobs.create",
    ) -> tuple[JobRecord, bool]:
        """
        The job, and whether it is new. When this returns, the job is on disk together with its first event. `parent` is
        the job that it is a repeat or a variant of, and `action` what the audit calls that.

        Of any number of submissions with one `idempotency_key` and one `fingerprint` (of the request) the first makes
        the job, and the others are given that one.

        Raises:
            KeyReused: the key came before with another fingerprint.
            NonFinite: the spec holds NaN or an infinity.
            QuotaSpent: the tenant may have no more at the moment.
            BeyondQuota: the job asks for more trials at once than the tenant may have.
        """
        ...

    def job(self, job_id: str) -> JobRecord:
        """Raises `NotFound`."""
        ...

    def jobs(self, *, limit: int, before: Cursor | None = None, state: JobState | None = None) -> Sequence[JobRecord]:
        """Newest first. `before` is the last job of the page before; jobs submitted meanwhile do not shift pages."""
        ...

    def trials(self, job_id: str) -> Sequence[Trial]:
        """All trials, by number. Raises `NotFound` when there is no such job."""
        ...

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Those numbered above `after`, in order. Raises `NotFound` when there is no such job."""
        ...

    def request_cancel(self, job_id: str) -> JobRecord:
        """
        A job that no driver has is CANCELLED at once. Another one is marked, and its driver ends it. A job at its end
        stays as it is, and asking again changes nothing. Raises `NotFound`.
        """
        ...

    def request_pause(self, job_id: str) -> JobRecord:
        """
        The job is not given out any more, and a driver that has it gives it back. Asking again changes nothing.

        Raises:
            NotFound: there is no such job.
            IllegalTransition: it has ended, or is being cancelled.
        """
        ...

    def resume(self, job_id: str) -> JobRecord:
        """Undoes `request_pause`; a job that is not paused stays as it is. Raises as that does."""
        ...

    def change(self, job_id: str, spec: JobSpec, *, revision: int) -> JobRecord:
        """
        Puts `spec` in the place of the job's, as far as `workers.rules.changed_spec` allows.

        Raises:
            NotFound: there is no such job.
            Outdated: the job is not at `revision`.
            IllegalTransition: it has come too far for that.
        """
        ...

    def delete(self, job_id: str) -> JobRecord:
        """
        The job as it was; from now on it is not there for users, and its artifacts take up none of their room.

        Raises:
            NotFound: there is no such job.
            IllegalTransition: it has not ended.
        """
        ...


class Account(Protocol):
    """The keys of one tenant, what it has used, and what was done in its name. Raises as `Jobs` does."""

    def create_key(self, name: str, scope: Scope, lifetime_seconds: int | None = None) -> tuple[Key, str]:
        """A new key, and the secret itself, which nobody can be told again."""
        ...

    def key(self, key_id: str) -> Key:
        """Raises `NotFound`."""
        ...

    def keys(self, *, limit: int, before: Cursor | None = None) -> Sequence[Key]:
        """Newest first, with those that are revoked or over."""
        ...

    def revoke_key(self, key_id: str) -> Key:
        """From the next request on it is good for nothing; again changes nothing. Raises `NotFound`."""
        ...

    def usage(self) -> Mapping[Quota, Share]:
        """By every quota there is."""
        ...

    def audit(self, *, limit: int, before: Cursor | None = None) -> Sequence[Entry]:
        """Newest first."""
        ...


class Record(Protocol):
    """All that is on record. Every method may raise `StoreUnavailable`."""

    def jobs(self, caller: Caller) -> Jobs: ...

    def account(self, caller: Caller) -> Account: ...

    def holder(self, secret: str) -> Key | None:
        """The key that `secret` is, if it is one that may be used now; notes, about once a minute, that it was."""
        ...

    def has_tenant(self, name: str) -> bool: ...

    def figures(self, since: datetime | None, *, reach_seconds: float) -> Figures:
        """
        `since` is `until` of the figures before these; without any, what happened in the last `reach_seconds` counts.
        """
        ...

    def connections(self) -> Connections:
        """Does not look at the database."""
        ...

    def ping(self) -> None:
        """Returns when the record answers."""
        ...

    def schema_version(self) -> str | None:
        """The revision of the tables; None when there are none."""
        ...


class Tenants(Protocol):
    """Those whose jobs are on record; for whoever can reach the database itself. Raises as `Jobs` does."""

    def create(self, name: str) -> tuple[Tenant, bool]:
        """
        The tenant, and whether it is new.

        Raises:
            UserError: it cannot be called that.
        """
        ...

    def tenants(self) -> Sequence[Tenant]:
        """By name."""
        ...

    def holder_of(self, key_id: str) -> str:
        """The tenant that a key belongs to. Raises `NotFound`."""
        ...

    def limit(self, name: str, limits: Mapping[Quota, int | None]) -> Tenant:
        """Sets those limits and leaves the others as they are. Raises `NotFound`."""
        ...
