"""
What the service needs of the record; a database fills it (`service.store.record`).

What belongs to a tenant is reached through the methods of `Record` that demand a `Caller`, and through no other: there
is no way to ask for a job without saying whose.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from search.errors import LedgerError, StillhouseError, UserError
from search.spec import JobSpec
from search.trial import Trial
from service.filters import By, Expression, Path, Value, fields_of
from workers.events import Event
from workers.ports import JobRecord, JobState, Level, LoggedLine
from workers.standings import Standing

T = TypeVar("T")

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
    traceparent: str = ""
    """Of the request, as W3C Trace Context writes it; empty where nobody traces."""


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
    """Of all artifacts of its jobs, and of its complete uploads."""


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


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a tenant wants to be told of its jobs."""

    id: str
    url: str
    kinds: Sequence[str]
    """Of events."""
    secret: str
    """What is sent is signed with it; whoever made the webhook is shown it, and nobody else."""
    created_at: datetime
    disabled_at: datetime | None
    """Since when nothing is sent any more, because the receiver answered that it is gone for good."""


class DeliveryState(StrEnum):
    """WAITING for its first attempt or the next; the others are ends, until it is replayed."""

    WAITING = "WAITING"
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one webhook. `job_id` and `seq` are None for one that only tries the webhook."""

    id: str
    webhook_id: str
    kind: str
    job_id: str | None
    seq: int | None
    state: DeliveryState
    created_at: datetime
    attempts: int
    """Begun ones."""
    next_at: datetime | None
    delivered_at: datetime | None
    dead_at: datetime | None
    status: int | None
    """Of the latest answer; None when there was none."""
    error: str
    """What went wrong at the latest attempt."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery that is being attempted."""

    id: str
    webhook_id: str
    url: str
    secret: str
    body: str
    attempt: int
    """From 1. What is told of an attempt counts only while there is no later one."""
    waited_seconds: float
    """Since it was to be sent first, or since its replay."""
    wanted: bool
    """False once its webhook is deleted or disabled."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is still to be delivered, all tenants together."""

    oldest_seconds: float
    """How long the delivery that is due for the longest time has been so; 0 when none is due."""
    waiting: int
    dead: int


class QuotaSpent(StillhouseError):
    """The tenant has what it may have; `code` names the quota. It may try again after `retry_seconds`."""

    def __init__(self, quota: Quota, message: str, *, retry_seconds: int) -> None:
        super().__init__(message)
        self.code, self.retry_seconds = f"QUOTA_{quota.name}", retry_seconds


class BeyondQuota(UserError):
    """What is asked for is more than the tenant may ever have."""

    code = "BEYOND_QUOTA"


class InUse(LedgerError):
    """Something else needs it."""


class Whole(LedgerError):
    """The upload is complete, and stays as it is."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"the upload {upload_id} is complete; to upload another file, declare another upload")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a user's, as it was declared. It may be named in a job from `completed_at` on."""

    id: str
    bytes: int
    sha256: str
    """In hexadecimal."""
    created_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Registered:
    """A teacher or a dataset that was looked at once, and has a name since."""

    id: str
    name: str
    spec: Mapping[str, Any]
    """What stands at `teacher` or `dataset` in a job."""
    facts: Mapping[str, Any]
    """What was found when it was looked at."""
    created_at: datetime


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

    def standings(self, found: Sequence[JobRecord]) -> Sequence[Standing]:
        """What the trials of these jobs come to, in their order."""
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


@dataclass(frozen=True, slots=True)
class Listing:
    """
    What of a list is wanted. `order` ends with a field that no two rows share; `after` has the values that the last row
    of the page before has of the fields it is ordered by, so what is added meanwhile does not shift pages.
    """

    order: Sequence[By]
    limit: int
    where: Expression | None = None
    after: tuple[Value, ...] | None = None

    @property
    def fields(self) -> set[Path]:
        return fields_of(self.where) | {key.field for key in self.order}


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: Sequence[T]
    after: tuple[Value, ...] | None
    """For the `Listing` of the next page; None when this is the last one."""


class Views(Protocol):
    """
    The jobs of one tenant to be looked at, however many they are and however many trials they have. Methods with a
    `job_id` raise `NotFound` when there is no such job; all raise as `Jobs` does.
    """

    def jobs(self, listing: Listing) -> Page[tuple[JobRecord, Standing]]:
        """By the fields of `service.filters.JOBS`."""
        ...

    def trials(self, job_id: str, listing: Listing) -> Page[Trial]:
        """By the fields of `service.filters.TRIALS`."""
        ...

    def trial(self, job_id: str, trial_id: str) -> Trial:
        """Raises `NotFound`, also for a trial of another job."""
        ...

    def scored(self, job_id: str, fields: Sequence[Path], rung: int | None = None) -> Sequence[tuple[Any, ...]]:
        """
        Of every trial with a score its values of these fields, by number; `("choices",)` is all its choices. The score
        is the one at `rung`, and trials without one are left out; None for each trial's last.
        """
        ...

    def told(self, job_id: str, kinds: Sequence[str], *, number: int | None = None) -> Sequence[Event]:
        """Events of these kinds, in order; with `number` those whose `trial` is that number."""
        ...

    def logs(
        self, job_id: str, *, after: int = 0, limit: int = 1000, trial: str | None = None, level: Level = Level.DEBUG
    ) -> Sequence[LoggedLine]:
        """Lines of the job's log numbered above `after`, of that level at least, in order; with `trial` those on it."""
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


class Webhooks(Protocol):
    """Where one tenant wants to be told of its jobs, and what became of that. Raises as `Jobs` does."""

    def create(self, url: str, kinds: Sequence[str], *, once: Once | None = None) -> tuple[Webhook, bool]:
        """
        The webhook, and whether it is new. It hears of what happens from now on.

        Raises:
            KeyReused: the key of `once` came before with another request.
            TooManyWebhooks: the tenant has as many as it may.
        """
        ...

    def webhook(self, webhook_id: str) -> Webhook:
        """Raises `NotFound`; a deleted one is not there."""
        ...

    def webhooks(self, *, limit: int, before: Cursor | None = None) -> Sequence[Webhook]:
        """Newest first."""
        ...

    def delete(self, webhook_id: str) -> None:
        """Nothing more is sent to it. Raises `NotFound`."""
        ...

    def deliveries(
        self, webhook_id: str, *, limit: int, before: Cursor | None = None, state: DeliveryState | None = None
    ) -> Sequence[Delivery]:
        """Newest first. Raises `NotFound` when there is no such webhook."""
        ...

    def try_out(self, webhook_id: str) -> Delivery:
        """A delivery that tells of nothing. Raises `NotFound`."""
        ...

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """What was delivered or given up is due again; what waits stays as it is. Raises `NotFound`."""
        ...


class Outbox(Protocol):
    """
    What is to be sent, all tenants together; for those who send it. Any number of them may share it.

    What is told of an attempt changes nothing when a later attempt was begun. Raises as `Jobs` does.
    """

    def take(self, limit: int, *, lease_seconds: float, busy: Collection[str] = ()) -> Sequence[Letter]:
        """
        Deliveries that are due, each begun by this call; nobody else is given them for `lease_seconds`. At most a few
        are of one webhook, and none of those in `busy`.
        """
        ...

    def delivered(self, letter: Letter, status: int) -> None: ...

    def failed(self, letter: Letter, status: int | None, error: str, *, again_seconds: float) -> None:
        """It is due again after so many seconds."""
        ...

    def give_up(self, letter: Letter, status: int | None, error: str) -> None: ...

    def disable(self, letter: Letter, status: int, error: str) -> None:
        """Gives up this and all that waits for the same webhook, and disables it."""
        ...

    def forget(self, older_seconds: float) -> bool:
        """Takes out, a part at a time, what is at its end and was put down before that; true when there may be more."""
        ...


class TooManyWebhooks(UserError):
    code = "TOO_MANY_WEBHOOKS"


class Uploads(Protocol):
    """The uploads of one tenant: what is on record of them, not their content. Raises as `Jobs` does."""

    def declare(self, size: int, sha256: str, once: Once | None = None) -> tuple[Upload, bool]:
        """
        An upload of `size` bytes to come, and whether it is new.

        Raises:
            KeyReused: the key came before with another request.
            QuotaSpent: with that the tenant would have more stored than it may.
            BeyondQuota: that alone is more.
        """
        ...

    def upload(self, upload_id: str) -> Upload:
        """Raises `NotFound`."""
        ...

    def uploads(self, *, limit: int, before: Cursor | None = None) -> Sequence[Upload]:
        """Newest first, complete or not."""
        ...

    def complete(self, upload_id: str) -> Upload:
        """
        Its content has come and is what was declared.

        Raises:
            NotFound: it was deleted meanwhile.
            Whole: it was complete before.
            QuotaSpent: the tenant has stored too much meanwhile.
        """
        ...

    def delete(self, upload_id: str) -> None:
        """
        It is not there any more; again changes nothing.

        Raises:
            NotFound: it never was.
            InUse: a teacher that is registered, or a job that has not ended, names it.
        """
        ...

    def check(self, upload_id: str) -> None:
        """Raises `UserError`, pointing at `/teacher/weights`, unless there is such an upload and it is complete."""
        ...


class Register(Protocol):
    """The teachers, or the datasets, that one tenant has registered. Raises as `Jobs` does."""

    def create(
        self, name: str, spec: Mapping[str, Any], facts: Mapping[str, Any], once: Once | None = None
    ) -> tuple[Registered, bool]:
        """
        It, and whether it is new.

        Raises:
            KeyReused: the key came before with another request.
            UserError: the upload that `spec` names as weights is not there.
        """
        ...

    def replay(self, once: Once | None) -> Registered | None:
        """What this very request has made before, if it came before. Raises `KeyReused`."""
        ...

    def get(self, registered_id: str) -> Registered:
        """Raises `NotFound`."""
        ...

    def list(self, *, limit: int, before: Cursor | None = None) -> Sequence[Registered]:
        """Newest first."""
        ...

    def delete(self, registered_id: str) -> None:
        """Jobs that were made of it go on. Raises `NotFound`."""
        ...


class Record(Protocol):
    """All that is on record. Every method may raise `StoreUnavailable`."""

    def jobs(self, caller: Caller) -> Jobs: ...

    def views(self, caller: Caller) -> Views: ...

    def account(self, caller: Caller) -> Account: ...

    def webhooks(self, caller: Caller) -> Webhooks: ...

    def latest(self, job_ids: Collection[str]) -> Mapping[str, int]:
        """
        By job the number of its latest event; ids that nobody has are left out. For jobs that their tenants have been
        given already: it tells nothing else.
        """
        ...

    def outbox(self) -> Backlog:
        """How far the deliveries to webhooks are behind."""
        ...

    def uploads(self, caller: Caller) -> Uploads: ...

    def teachers(self, caller: Caller) -> Register: ...

    def datasets(self, caller: Caller) -> Register: ...

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
