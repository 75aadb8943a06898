"""
What the service needs of the record; a database fills it (`service.store.record`).

What belongs to a tenant is reached through the methods of `Record` that demand a `Caller`, and through no other: there
is no way to ask for a job without saying whose.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from search.spec import JobSpec
from search.trial import Trial
from service.filters import Path
from service.store.values import (
    Backlog,
    Caller,
    Connections,
    Cursor,
    Delivery,
    DeliveryState,
    Entry,
    Figures,
    Key,
    Letter,
    Listing,
    Once,
    Page,
    Quota,
    Registered,
    Scope,
    Share,
    Tenant,
    Upload,
    Webhook,
)
from workers.events import Event
from workers.ports import JobRecord, Level, LoggedLine
from workers.standings import Standing


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
