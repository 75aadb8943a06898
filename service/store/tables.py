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
    UniqueConstraint("idempotency_key"),
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
