"""What the service and its record tell each other: who asks, and what is there to be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from search.errors import LedgerError, StillhouseError, UserError
from service.filters import By, Expression, Path, Value, fields_of
from workers.ports import JobState

T = TypeVar("T")


Cursor = tuple[datetime, str]
"""A place in a list that is sorted by time: `(at, id)` of what a page ended with."""


DEFAULT = "default"
"""The tenant of whoever runs the server. What was on record before there were tenants belongs to it."""


def suits(found: str | None, made_for: str) -> bool:
    """
    Whether a program that was made for the tables of one revision may work with those that were `found`. Later ones
    will do: a migration leaves the version before it able to go on, or servers could not be replaced one by one.
    Revisions are numbers of four digits.
    """
    return found is not None and found >= made_for


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


class TooManyWebhooks(UserError):
    code = "TOO_MANY_WEBHOOKS"
