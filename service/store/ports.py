"""What the service needs of the record. A database fills it (`service.store.jobs`), and so does `workers.memory`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from search.spec import JobSpec
from search.trial import Trial
from workers.events import Event
from workers.ports import JobRecord, JobState

Cursor = tuple[datetime, str]
"""A place in the list of jobs: `(created_at, id)` of the job that a page ended with."""


class Jobs(Protocol):
    """
    Jobs as their users see them. What a method returns is a value: changing it changes nothing on record.

    Every method may raise `StoreUnavailable`, and those that write `StorageFull`.
    """

    def submit(
        self, spec: JobSpec, *, idempotency_key: str | None = None, fingerprint: str | None = None
    ) -> tuple[JobRecord, bool]:
        """
        The job, and whether it is new. When this returns, the job is on disk together with its first event.

        Of any number of submissions with one `idempotency_key` and one `fingerprint` (of the request) the first makes
        the job, and the others are given that one.

        Raises:
            KeyReused: the key came before with another fingerprint.
            NonFinite: the spec holds NaN or an infinity.
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
        A queued job is CANCELLED at once. A claimed one is marked, and its driver ends it. A job at its end stays as it
        is, and asking again changes nothing. Raises `NotFound`.
        """
        ...

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state; every state is there."""
        ...

    def ping(self) -> None:
        """Returns when the record answers."""
        ...

    def schema_version(self) -> str | None:
        """The revision of the tables; None when there are none."""
        ...
