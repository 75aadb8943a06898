"""
Tenants, keys, usage and the audit. What is on record already belongs to the tenant `default`.

A version that knows nothing of tenants may go on beside this one: what it submits is `default`'s too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_EPOCH_MICROSECONDS = {
    "sqlite": "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
}
_STAYS = "the audit is only added to"
_APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_stays_{verb} BEFORE {verb} ON audit BEGIN SELECT RAISE(ABORT, '{_STAYS}'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION audit_stays() RETURNS trigger LANGUAGE plpgsql "
        f"AS 'BEGIN RAISE EXCEPTION ''{_STAYS}''; END'",
        "CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_stays()",
    ],
}


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("served_at", sa.BigInteger),
        sa.Column("queued_jobs", sa.BigInteger),
        sa.Column("concurrent_trials", sa.BigInteger),
        sa.Column("cpu_seconds_per_day", sa.BigInteger),
        sa.Column("gpu_seconds_per_day", sa.BigInteger),
        sa.Column("stored_bytes", sa.BigInteger),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.execute(f"INSERT INTO tenants (name, created_at) VALUES ('default', {_EPOCH_MICROSECONDS[dialect]})")  # noqa: S608
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("last_used_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_keys_tenant"),
        sa.UniqueConstraint("digest", name="uq_keys_digest"),
        sa.CheckConstraint("scope IN ('read', 'submit', 'admin')", name=op.f("ck_keys_scope")),
    )
    op.create_index("ix_keys_of_tenant", "keys", ["tenant", "id"])
    # SQLite makes the table anew for this, which is why it has to be written down whole.
    with op.batch_alter_table("jobs", copy_from=_jobs()) as jobs:
        jobs.add_column(sa.Column("tenant", sa.Text, nullable=False, server_default="default"))
        jobs.add_column(sa.Column("charged_at", sa.BigInteger))
        jobs.create_foreign_key("fk_jobs_tenant", "tenants", ["tenant"], ["name"])
        jobs.drop_constraint("uq_jobs_idempotency_key", type_="unique")
        jobs.create_unique_constraint("uq_jobs_tenant_idempotency_key", ["tenant", "idempotency_key"])
    op.create_index("ix_jobs_of_tenant", "jobs", ["tenant", "created_at", "id"])
    _partial_index("ix_jobs_turn", ["tenant", "priority", "created_at", "id"], "ended_at IS NULL")
    _partial_index("ix_jobs_leased", ["tenant"], "lease_until IS NOT NULL")
    op.create_table(
        "usage",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("cpu_seconds", sa.Float(53), nullable=False),
        sa.Column("gpu_seconds", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "day", name="pk_usage"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_usage_job_id"),
    )
    op.create_index("ix_usage_day", "usage", ["day"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_audit_tenant"),
    )
    op.create_index("ix_audit_newest", "audit", ["tenant", "at", "id"])
    for statement in _APPEND_ONLY[dialect]:
        op.execute(statement)


def _partial_index(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _jobs() -> sa.Table:
    """The table as revision 0002 leaves it."""
    return sa.Table(
        "jobs",
        sa.MetaData(),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("cancel_requested_at", sa.BigInteger),
        sa.Column("phase", sa.Text),
        sa.Column("owner", sa.Text),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("fruitless", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'PREPARING', 'RUNNING', 'FINALIZING', 'SUCCEEDED', 'FAILED', 'CANCELLED')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))", name=op.f("ck_jobs_end")
        ),
        sa.CheckConstraint("ended_at IS NULL OR lease_until IS NULL", name=op.f("ck_jobs_lease")),
        sa.Index("ix_jobs_newest", "created_at", "id"),
        sa.Index("ix_jobs_open", "priority", "created_at", "id", sqlite_where=sa.text("ended_at IS NULL")),
    )
