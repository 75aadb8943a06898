"""
The tables. Each rule of the record that a database can hold is a constraint here.

Times are whole microseconds since 1970 by the database's own clock: exact on SQLite and Postgres alike, and cursors
made of them come back as they were. JSON is kept as text (`json`, not `jsonb`, on Postgres): what a user wrote comes
back as written, and `\\u0000` is allowed in it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    column,
    event,
    false,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware datetime, kept as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


class Words(TypeDecorator[str]):
    """Text that may hold an error message of anyone's; what Postgres or UTF-8 cannot hold becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class now(FunctionElement[datetime]):  # noqa: N801 - reads as a function of SQL
    """The database's clock, at the moment the statement is carried out (not when its transaction began)."""

    type = Moment()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    # `unixepoch('subsec')` is younger than the SQLite of Debian 12. The clock of SQLite counts milliseconds.
    return "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)"


@compiles(now, "postgresql")
def _postgres_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


def in_seconds(seconds: float) -> ColumnElement[datetime]:
    """The moment `seconds` from now."""
    return type_coerce(type_coerce(now(), BigInteger) + round(seconds * 1_000_000), Moment)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_PLAIN_JSON = JSON(none_as_null=True)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Moment, nullable=False),
    Column("served_at", Moment),  # when a job of it was given out last
    # What it may have of each; NULL for as much as there is. The names are those of `service.store.values.Quota`.
    Column("queued_jobs", BigInteger),
    Column("concurrent_trials", BigInteger),
    Column("cpu_seconds_per_day", BigInteger),
    Column("gpu_seconds_per_day", BigInteger),
    Column("stored_bytes", BigInteger),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("name", Words, nullable=False),
    Column("scope", Text, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the key in hexadecimal; the key itself is nowhere
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("last_used_at", Moment),
    UniqueConstraint("digest"),
    CheckConstraint("scope IN ('read', 'submit', 'admin')", name="scope"),
    Index("ix_keys_of_tenant", "tenant", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Words, nullable=False),
    Column("spec", _PLAIN_JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("cancel_requested_at", Moment),
    Column("phase", Text),
    Column("owner", Words),  # of the latest claim; for operators
    Column("token", Integer, nullable=False),
    Column("claims", Integer, nullable=False),
    Column("fruitless", Integer, nullable=False),  # claims since a phase was finished or a trial scored
    Column("lease_until", Moment),
    Column("events", Integer, nullable=False),  # the number of the latest event
    Column("idempotency_key", Words),
    Column("fingerprint", Text),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False, server_default="default"),
    Column("charged_at", Moment),  # up to when its time on lease is in `usage`; NULL while it is on none
    Column("revision", Integer, nullable=False, server_default="0"),  # how often its user has changed it
    Column("pause_requested_at", Moment),  # since when its user wants nothing done for it; NULL once it may go on
    Column("parent", Text),  # the job that it is a repeat or a variant of
    Column("deleted_at", Moment),
    Column("traceparent", Text),  # of the request that submitted it; the job's spans go below
    UniqueConstraint("tenant", "idempotency_key"),
    CheckConstraint(
        "state IN ('QUEUED', 'PREPARING', 'RUNNING', 'FINALIZING', 'SUCCEEDED', 'FAILED', 'CANCELLED')", name="state"
    ),
    CheckConstraint("(ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))", name="end"),
    CheckConstraint("ended_at IS NULL OR lease_until IS NULL", name="lease"),
    Index("ix_jobs_newest", "created_at", "id"),
    Index(
        "ix_jobs_open",
        "priority",
        "created_at",
        "id",
        sqlite_where=column("ended_at").is_(None),
        postgresql_where=column("ended_at").is_(None),
    ),
    Index("ix_jobs_of_tenant", "tenant", "created_at", "id"),
    Index(
        "ix_jobs_turn",
        "tenant",
        "priority",
        "created_at",
        "id",
        sqlite_where=column("ended_at").is_(None),
        postgresql_where=column("ended_at").is_(None),
    ),
    Index(
        "ix_jobs_leased",
        "tenant",
        sqlite_where=column("lease_until").is_not(None),
        postgresql_where=column("lease_until").is_not(None),
    ),
)

phases = Table(
    "phases",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("phase", Text, primary_key=True),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("result", _PLAIN_JSON),
    CheckConstraint("(ended_at IS NULL) = (result IS NULL)", name="result"),
)

trials = Table(
    "trials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("key", Text, nullable=False),
    Column("choices", _PLAIN_JSON, nullable=False),
    Column("origin", _PLAIN_JSON, nullable=False),
    Column("cost", _PLAIN_JSON, nullable=False),
    Column("extra", _PLAIN_JSON),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reason", Words, nullable=False),
    UniqueConstraint("job_id", "number"),
    UniqueConstraint("job_id", "key"),
    CheckConstraint("state IN ('PENDING', 'RUNNING', 'COMPLETED', 'STOPPED', 'FAILED', 'CANCELLED')", name="state"),
    Index("ix_trials_by_state", "job_id", "state"),
)

scores = Table(
    "scores",
    metadata,
    Column("trial_id", Text, ForeignKey("trials.id"), primary_key=True),
    Column("rung", Integer, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("accuracy", Float(53), nullable=False),
    Column("kl", Float(53), nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("at", Moment, nullable=False),
    Column("cached", Boolean, nullable=False, server_default=false()),
    Index("ix_scores_at", "at"),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("name", Words, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("data", _PLAIN_JSON, nullable=False),
    Column("at", Moment, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("day", Integer, primary_key=True),  # since 1970, UTC
    Column("cpu_seconds", Float(53), nullable=False),
    Column("gpu_seconds", Float(53), nullable=False),
    Index("ix_usage_day", "day"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("actor", Words, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Words, nullable=False),
    Column("request_id", Words, nullable=False),
    Column("at", Moment, nullable=False),
    Index("ix_audit_newest", "tenant", "at", "id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.name"), primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Words, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("object", Text, nullable=False),  # the id of what the first such request has made
    Column("at", Moment, nullable=False),
)

logs = Table(
    "logs",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("level", Text, nullable=False),
    Column("logger", Text, nullable=False),
    Column("trial", Text),
    Column("message", Words, nullable=False),
)

standings = Table(  # of jobs that have ended
    "standings",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("document", _PLAIN_JSON, nullable=False),  # a `workers.standings.Standing`
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # as declared; what came is compared with it, and with `sha256`
    Column("sha256", Text, nullable=False),
    Column("completed_at", Moment),
    Column("deleted_at", Moment),
    Index("ix_uploads_of_tenant", "tenant", "created_at", "id"),
)

teachers = Table(
    "teachers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("name", Words, nullable=False),
    Column("spec", _PLAIN_JSON, nullable=False),  # what stands at `teacher` in a job
    Column("facts", _PLAIN_JSON, nullable=False),  # what was found when it was looked at
    Column("upload", Text, ForeignKey("uploads.id")),
    Column("deleted_at", Moment),
    Index("ix_teachers_of_tenant", "tenant", "created_at", "id"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("name", Words, nullable=False),
    Column("spec", _PLAIN_JSON, nullable=False),  # what stands at `dataset` in a job
    Column("facts", _PLAIN_JSON, nullable=False),
    Column("deleted_at", Moment),
    Index("ix_datasets_of_tenant", "tenant", "created_at", "id"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("url", Words, nullable=False),
    Column("secret", Text, nullable=False),  # as it is: what is sent is signed with it
    Column("kinds", _PLAIN_JSON, nullable=False),  # of events
    Column("disabled_at", Moment),  # when its receiver answered that it is gone for good
    Column("deleted_at", Moment),
    Index("ix_webhooks_of_tenant", "tenant", "created_at", "id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id"), nullable=False),
    Column("job_id", Text, ForeignKey("jobs.id")),  # NULL for one that only tries the webhook
    Column("seq", Integer),  # of the event
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("since", Moment, nullable=False),  # when it was to be sent first, or again after a replay
    Column("attempts", Integer, nullable=False),  # begun ones; a later one outdates what an earlier one has to tell
    Column("next_at", Moment),  # when to try (again); NULL once it was delivered or given up
    Column("delivered_at", Moment),
    Column("dead_at", Moment),
    Column("status", Integer),  # of the latest answer
    Column("error", Words, nullable=False),
    UniqueConstraint("webhook_id", "job_id", "seq"),
    CheckConstraint("(next_at IS NULL) = (delivered_at IS NOT NULL OR dead_at IS NOT NULL)", name="next"),
    CheckConstraint("(job_id IS NULL) = (seq IS NULL)", name="event"),
    Index(
        "ix_deliveries_due",
        "next_at",
        sqlite_where=column("next_at").is_not(None),
        postgresql_where=column("next_at").is_not(None),
    ),
    Index(
        "ix_deliveries_dead",
        "dead_at",
        sqlite_where=column("dead_at").is_not(None),
        postgresql_where=column("dead_at").is_not(None),
    ),
    Index("ix_deliveries_newest", "webhook_id", "created_at", "id"),
)

tallies = Table(
    "tallies",
    metadata,
    Column("name", Text, primary_key=True),  # of `service.store.values.Tally`
    Column("value", BigInteger, nullable=False),
)

_STAYS = "the audit is only added to"
APPEND_ONLY = {
    "sqlite": tuple(
        f"CREATE TRIGGER audit_stays_{verb} BEFORE {verb} ON audit BEGIN SELECT RAISE(ABORT, '{_STAYS}'); END"
        for verb in ("update", "delete")
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION audit_stays() RETURNS trigger LANGUAGE plpgsql "
        f"AS 'BEGIN RAISE EXCEPTION ''{_STAYS}''; END'",
        "CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_stays()",
    ),
}
"""By dialect, what keeps the rows of `audit` from being changed or taken out."""

for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(audit, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]
